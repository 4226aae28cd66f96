"""Continuations of prompts, and their scores under the reference."""
