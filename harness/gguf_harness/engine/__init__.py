"""The only package that touches llama.cpp: models, contexts, taps, quantization, and the worker process they run in."""
