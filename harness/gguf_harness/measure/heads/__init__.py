"""Interventions on heads: importance, interchange, removal."""
