"""What does a quantized KV cache cost, and what does it save?"""
