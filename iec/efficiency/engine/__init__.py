"""A deployed engine: a network exported to an ONNX file, and such a file as the network of a cell."""
