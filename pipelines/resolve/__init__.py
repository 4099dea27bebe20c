"""The keyed stage: which document survives, and what each source holds. DuckDB or Beam, with the same decisions."""
