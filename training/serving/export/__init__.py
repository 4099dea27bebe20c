"""Hand a model version out: a self-contained Hugging Face folder, or its backbone as a plain Llama."""
