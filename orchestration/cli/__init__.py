"""The `nulls` command, one module a family of commands. `main.py` assembles them."""
