"""Techniques that make sampling cheaper: quantization, feature caching, and both together."""
