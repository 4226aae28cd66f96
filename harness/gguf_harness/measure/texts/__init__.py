"""Continuations of prompts, and what the reference says of them."""
