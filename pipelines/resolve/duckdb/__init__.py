"""The keyed stage on one machine, out of core, in DuckDB."""
