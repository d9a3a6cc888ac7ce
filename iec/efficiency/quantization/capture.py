"""What goes into one module of a network and what comes out of it, kept in files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class _Reached(Exception):
    """Ends a forward pass where all that is wanted from it is there."""


class Column:
    """A growing tensor [n, ..] in a file. ``tensor`` is a memory map: what is read is in memory, the rest need not be."""

    def __init__(self, path: Path) -> None:
        self.path, self.length, self._like = path, 0, torch.empty(0)

    def append(self, values: Tensor) -> None:
        values = values.detach().cpu().contiguous()
        with self.path.open("ab") as file:
            values.reshape(-1).view(torch.uint8).numpy().tofile(file)
        self.length, self._like = self.length + len(values), values[:0]

    def tensor(self) -> Tensor:
        size = self.length * self._like.shape[1:].numel()
        flat = torch.from_file(str(self.path), shared=False, size=size, dtype=self._like.dtype)
        return flat.view(self.length, *self._like.shape[1:])


class Arguments:
    """The arguments of the calls of one module: tensors with one entry an image in files, all else as the last call had it."""

    def __init__(self, folder: Path, label: str) -> None:
        self.folder, self.label = folder, label
        self.columns: dict[int | str, Column] = {}
        self.other: dict[int | str, Any] = {}
        self._maps: dict[int | str, Tensor] = {}

    def append(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Returns the number of images."""
        images = next(len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        for key, value in given.items():
            if isinstance(value, Tensor) and value.ndim and len(value) == images:
                self.columns.setdefault(key, Column(self.folder / f"{self.label}-{key}")).append(value)
            else:
                self.other[key] = value
        return images

    def open(self) -> None:
        """Map the files; nothing can be appended afterwards."""
        self._maps = {key: column.tensor() for key, column in self.columns.items()}

    def read(self, index: Tensor, device: torch.device) -> dict[int | str, Any]:
        """The arguments of the images ``index``, positional ones under their position."""
        return self.other | {key: values[index].to(device) for key, values in self._maps.items()}


def split_arguments(arguments: dict[int | str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """What `Arguments.read` gives as args and kwargs."""
    positions = sorted(key for key in arguments if isinstance(key, int))
    return [arguments[key] for key in positions], {key: value for key, value in arguments.items() if isinstance(key, str)}


def catch(module: nn.Module, run: Callable[[], object], *, output: bool) -> tuple[tuple[Any, ...], dict[str, Any], Any] | None:
    """The arguments of the first call of ``module`` in ``run()``, and its output if asked for; None if it is not called.

    ``run`` is abandoned there.
    """
    caught: list[Any] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught[:] = [args, kwargs, None]
        if not output:
            raise _Reached

    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        caught[2] = result
        raise _Reached

    with _hooks(module, before, after), torch.no_grad(), suppress(_Reached):
        run()
    return (caught[0], caught[1], caught[2]) if caught else None


@contextmanager
def _hooks(module: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> Iterator[None]:
    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
