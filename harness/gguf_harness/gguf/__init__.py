"""What is in a GGUF file: header, metadata, types, weights, groups of tensors, and changed copies."""
