"""Data loading: tokenizer, token cache, packed rows, prefetching, held-out sources."""
