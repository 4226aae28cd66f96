"""Measurements: what runs in workers, next to llama.cpp, and returns arrays and numbers."""
