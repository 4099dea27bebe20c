"""Snapshot files: an external sort by source, and Parquet shards."""
