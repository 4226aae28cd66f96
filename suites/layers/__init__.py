"""How does information move through the layers, and where does quantization disturb it?"""
