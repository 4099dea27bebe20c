"""Sinks: which of them a source switches on, their MLP, their sparse gradients and their optimizer."""
