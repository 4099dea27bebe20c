"""The catalogue: one SQL database of snapshots, model versions, the ledger of requests, and what is revoked."""
