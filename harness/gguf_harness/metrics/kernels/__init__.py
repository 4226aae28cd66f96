"""Numerics that families of metrics share, each once: arrays in, arrays or plain numbers out."""
