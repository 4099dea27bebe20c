"""Wikipedia, as XML dumps or as WikiExtractor wrote it, to documents."""
