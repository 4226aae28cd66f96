"""The only package that touches llama.cpp: sessions, taps, quantization, and the worker process they run in."""
