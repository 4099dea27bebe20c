"""Document filters: keep a document, or drop it with a reason."""
