"""What a person or a cluster touches: the `nulls` command, unlearning and its evidence, reports."""
