"""What does quantization cost, and what does it buy?"""
