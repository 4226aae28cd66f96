"""Passes over a corpus: perplexity, and divergence from the reference."""
