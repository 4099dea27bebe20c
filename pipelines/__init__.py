"""Dumps -> a snapshot: read, extract, filter, sign, resolve, write. Start at `pipelines/ingest.py`."""
