"""Text that others extracted, as rows of Parquet, to documents."""
