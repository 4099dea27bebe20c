"""Checkpoints to resume from, exported weights, and remote copies of both."""
