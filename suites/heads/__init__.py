"""What do attention heads do, and does quantization change it?"""
