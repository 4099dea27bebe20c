"""A child snapshot without some sources."""
