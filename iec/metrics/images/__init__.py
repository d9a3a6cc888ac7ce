"""Images of any origin, as uint8 blocks in a fixed order."""
