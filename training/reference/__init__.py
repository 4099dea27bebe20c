"""Released checkpoints of the paper's own code: recognise, convert, import their titles."""
