"""Weights compared with the reference's, and the cost of each group of tensors."""
