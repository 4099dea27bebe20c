"""Estimates before a run: parameters, memory, FLOPs, tokens, hours."""
