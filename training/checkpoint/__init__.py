"""Checkpoints: distributed ones to resume from, exported weights, remote copies."""
