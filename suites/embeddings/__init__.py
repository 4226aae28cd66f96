"""What does the space of a model's embeddings look like, and what of it did quantization move?"""
