"""The model: a Llama whose MLPs have sinks, and the attention mask of packed documents."""
