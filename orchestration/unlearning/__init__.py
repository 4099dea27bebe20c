"""Unlearn sources from a model version: resolve, plan, act, measure, record. Start at `unlearn.py`."""
