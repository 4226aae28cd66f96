"""Passes and observers: what runs inside a worker, next to llama.cpp, and ends in arrays and numbers."""
