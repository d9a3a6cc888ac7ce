"""How to get the weights of a model: what the messages about missing or wrong files say."""

from pathlib import Path
from typing import Literal

from iec.models.cards import Card, Component
from iec.models.files import instead, models_folder, weights_name

Place = Literal["default", "folder", "hub"]
"""Where weights are looked for: where ``model=NAME`` finds them, or what ``model.weights`` says."""


def missing(card: Card, component: Component, file: Path, place: Place) -> str:
    """The message for a file of a component that is not there. place: where it was looked for."""
    there = instead(file.parent, component)
    if card.packaged:
        way_out = (
            "Give model.weights a diffusers UNet folder." if place != "default" else "The package is incomplete: install it again."
        )
        return f"{card.name}: {file} does not exist (expected sha256 of the weights {card.packaged.sha256}).{there} {way_out}"
    if place == "hub":
        there = " The repository has none: where it has pickles alone, they are not opened."
    return f"{card.name}: {file} does not exist.{there} {get(card)}"


def get(card: Card) -> str:
    """How to get the weights of a model."""
    lines = [f"The weights of {card.name} ({card.licence}):", *_sources(card)]
    lines += [
        f"  a folder elsewhere       model.weights=DIR with {', '.join(f'{name}/' for name in card.components)}",
        "Without weights: model.random_weights=true runs the architecture, and model=ddim_cifar_small runs now.",
    ]
    return "\n".join(lines)


def _sources(card: Card) -> list[str]:
    """The lines about the authors' checkpoint, or about the hub's files where those are all that is taken."""
    original, hub = card.original, card.hub
    if original is not None:
        known = ", ".join(f"{kind} {value}" for kind in ("sha256", "md5") if (value := getattr(original, kind)))
        inside = f", {original.member} inside" if original.member else ""
        lines = [
            f"  file                     {original.file}{inside}",
            f"  from                     {original.url}",
            f"  hash                     {known or 'not known to us; the converter prints and records it'}",
            f"  fetch and convert        python -m iec convert {card.name}",
            f"  convert a file you have  python -m iec convert {card.name} --checkpoint FILE",
            f"  which makes              {models_folder() / card.name}",
        ]
        return lines if hub is None else [*lines, f"  or from the hub          model.weights=hub ({hub.repository})"]
    if hub is None:
        return []
    return [
        f"  files                    {', '.join(f'{c.name}/{weights_name(c)}' for c in card.components.values())}",
        f"  from                     https://huggingface.co/{hub.repository}/tree/{hub.revision or 'main'}",
        "  hash                     not known to us; the cell records it",
        f"  fetch and run            python -m iec run model={card.name} model.weights=hub",
    ]
