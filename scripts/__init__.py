"""Commands that make what the repository carries."""
