"""The keyed stage: decide which documents survive and what each source holds; DuckDB or Beam, same decisions."""
