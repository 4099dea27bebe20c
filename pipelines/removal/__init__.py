"""Remove sources from a snapshot, by a child without them."""
