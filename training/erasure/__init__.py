"""Erase sources from weights: zero their sinks, measure first what that costs others, and prove it. See `erase.py`."""
