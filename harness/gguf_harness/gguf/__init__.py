"""GGUF files: header, metadata, types, weights, groups of tensors, and modified copies."""
