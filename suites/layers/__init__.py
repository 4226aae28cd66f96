"""How does information flow through the layers, and where does quantization disturb it?"""
