"""Devices that exist, and the others; what commands are called."""

import runpy
import sys

import pytest
import torch

from iec.__main__ import COMMANDS, main
from iec.errors import DeviceError
from iec.io.runtime import resolve_device


@pytest.mark.parametrize(
    "name", ["mps", "cuda", "cuda:7", "cuda:x", "xpu", "hpu", "mtia", "privateuseone", "vulkan", "meta", "garbage", ""]
)
def test_a_device_that_cannot_compute_here_is_refused_in_a_line(name):
    try:
        torch.zeros(1, device=name).item()
        pytest.skip(f"{name} is here")
    except (RuntimeError, AssertionError, ImportError):
        pass
    with pytest.raises(
        DeviceError, match=rf"^device={name} cannot be used here \([^\n]+\)\. Use auto or cpu in its place\.$"
    ) as caught:
        resolve_device(name)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_the_ways_out_are_devices(name):
    assert torch.zeros(1, device=resolve_device(name)).item() == 0


MODULES = ["iec.sweeps", "iec.runs.export_images", *sorted(module for module, _ in COMMANDS.values() if module != "iec.runs")]
"""Hydra writes the help of the other."""


@pytest.mark.parametrize("module", MODULES)
def test_the_usage_of_a_module_names_the_module(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["-", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert capsys.readouterr().out.startswith(f"usage: python -m {module} ")


@pytest.mark.parametrize("name", ["table", "report", "gpu-check", "score"])
def test_the_usage_of_an_installed_command_names_the_command(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/iec", name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert capsys.readouterr().out.startswith(f"usage: iec {name} [")
