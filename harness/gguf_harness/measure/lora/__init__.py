"""What LoRA adapters change in a model, and what of it a quantized model keeps."""
