"""What a source is, and where it went: identity, ids, schemas, snapshots, lookup, the catalogue and its ledger.

Everything else stands on this package and it stands on nothing of ours. Importing it loads neither torch nor ray,
beam, duckdb or mlflow (`tests/test_layers.py` holds that), so a lookup starts in well under a second.
"""
