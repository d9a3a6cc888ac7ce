"""The products of attention: operands on the grid and float arithmetic, as in the simulation; each is rounded in one pass."""

from torch import Tensor, nn

from iec.efficiency.integer.passes import Passes
from iec.efficiency.quantization.attention import QuantProducts
from iec.efficiency.quantization.steps import ActivationQuantizer


class Operand(nn.Module):
    """What ``quantizer`` gives at a calibrated step, bit for bit."""

    def __init__(self, quantizer: ActivationQuantizer, passes: Passes) -> None:
        super().__init__()
        self.quantizer, self.passes = quantizer, passes

    def forward(self, x: Tensor) -> Tensor:
        return self.passes.on_grid(x, self.quantizer.grid()).to(x.dtype)


def round_operands(unet: nn.Module, passes: Passes) -> None:
    """Let ``passes`` round the operands of every attention of ``unet``, in place."""
    for module in list(unet.modules()):
        processor = getattr(module, "processor", None)
        if isinstance(processor, QuantProducts):
            for name, quantizer in list(processor.named_children()):
                if isinstance(quantizer, ActivationQuantizer):
                    setattr(processor, name, Operand(quantizer, passes))
