"""Numerics shared by families of metrics: arrays in, arrays or plain numbers out."""
