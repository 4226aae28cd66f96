"""What does a quantized KV cache cost?"""
