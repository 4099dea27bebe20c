"""Sinks: which a source switches on, their MLP, their sparse gradients and optimizer rows."""
