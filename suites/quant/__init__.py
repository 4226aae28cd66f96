"""What does quantization cost, and what does it save?"""
