"""What do attention heads look at, and does quantization change it?"""
