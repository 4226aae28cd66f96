"""Weights beside the reference's, and what each group of tensors costs."""
