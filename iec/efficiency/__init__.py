"""Efficiency techniques: post-training quantization, feature caching, both together, and what they cost.

diffusers is imported inside the functions that look into a UNet: what a configuration needs of this room does not load it.
"""
