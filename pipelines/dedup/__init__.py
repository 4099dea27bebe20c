"""Near-duplicate detection: MinHash signatures, verified edges, and the decisions, all pure functions."""
