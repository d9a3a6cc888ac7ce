"""Statistics of real images: made, imported, loaded and checked."""
