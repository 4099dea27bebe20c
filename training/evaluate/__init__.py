"""Evaluation: losses of a source's text with sinks on and off, compared with text that the model never saw."""
