"""The `nulls` command, one module a family of commands. `main.py` is the entry point."""
