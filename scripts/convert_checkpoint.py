"""Convert an original checkpoint of the paper's models to safetensors in diffusers' layout, once.

    python scripts/convert_checkpoint.py ldm_lsun_church                              # downloads it first
    python scripts/convert_checkpoint.py ldm_lsun_church --checkpoint lsun_churches.zip
    python scripts/convert_checkpoint.py ddim_cifar --checkpoint model-790000.ckpt --output /data/ddim_cifar

The command ``iec convert``, for a checkout: see `iec.models.checkpoints.__main__`.
"""

from iec.io.runtime import entry_point
from iec.models.checkpoints.__main__ import main

if __name__ == "__main__":
    with entry_point():
        main()
