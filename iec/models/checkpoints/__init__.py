"""The authors' checkpoints: safe reading and strict conversion to diffusers' layout. The only place that opens pickles."""
