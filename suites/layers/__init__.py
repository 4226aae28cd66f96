"""Where in the model does quantization do its harm?"""
