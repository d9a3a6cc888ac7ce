"""Correctors of a step that cost no network call, or few: one file each, behind the protocol of `iec.sampling.corrector`."""
