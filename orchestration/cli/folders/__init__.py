"""Commands for folders: weights that leave the stores, weights that come back, and stores that were moved."""
