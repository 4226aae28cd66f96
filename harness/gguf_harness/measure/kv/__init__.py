"""Cache of keys and values: what it costs, in bytes and in divergence, and where its errors are."""
