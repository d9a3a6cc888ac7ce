"""Models: a UNet with its weights, noise schedule, decoder and the paper's way of sampling it."""

from iec.models.cards import Card, card, card_names
from iec.models.model import Model
from iec.models.source import load_model

__all__ = ["Card", "Model", "card", "card_names", "load_model"]
