"""A cell: configuration, sampling, shards on disk, scores."""
