"""IEC, caches and quantization in pipelines of diffusers."""
