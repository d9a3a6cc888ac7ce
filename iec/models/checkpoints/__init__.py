"""The authors' checkpoints: safe reading and strict conversion to diffusers' layout. The only place that opens pickles."""

from iec.models.checkpoints.convert import convert
from iec.models.checkpoints.reader import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "convert", "open_checkpoint"]
