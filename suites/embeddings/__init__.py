"""What does a model's embedding space look like, and how does quantization change it?"""
