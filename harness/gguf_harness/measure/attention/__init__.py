"""Attention of heads on prompts, and its distance from the reference's."""
