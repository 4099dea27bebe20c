"""Experiment tracking: the MLflow store, and what a run logs to it."""
