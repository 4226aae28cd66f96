"""What is on disk: files written whole or not at all, the cache of measurements, runs."""
