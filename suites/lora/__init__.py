"""What does a LoRA adapter change, and does it survive quantization?"""
