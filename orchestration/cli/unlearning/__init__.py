"""Commands around an unlearn."""
