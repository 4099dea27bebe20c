"""Import a checkpoint that the paper's own code released: inspect it, convert its weights, import its titles."""
