"""Everything on disk: atomic writes, the cache of measurements, runs."""
