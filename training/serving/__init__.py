"""Model versions in MLflow, and the served model that enforces their revocations."""
