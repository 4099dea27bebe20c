"""A request as it comes: its lines, the sources they name, what is wrong with them, and its opening in the ledger."""
