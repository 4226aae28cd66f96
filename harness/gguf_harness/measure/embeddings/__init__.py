"""Token embeddings, words and prompts as vectors."""
