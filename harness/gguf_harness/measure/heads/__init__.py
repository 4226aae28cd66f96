"""Heads that are changed: importance, interchange, removal."""
