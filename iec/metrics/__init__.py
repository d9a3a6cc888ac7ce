"""Scores of generated images: FID, sFID, KID and IS over a named extractor, distances to a paired run, and their records."""
