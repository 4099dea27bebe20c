"""Commands for weights outside of the stores: folders that leave, and folders that come back."""
