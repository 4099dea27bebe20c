"""Experiment tracking in MLflow: the store, the log of a run, its restarts."""
