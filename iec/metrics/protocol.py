"""Named sets of rules, from images to scores, so that a number can be put beside one of another evaluator.

| protocol              | network, resize                     | inception score                        | KID                 |
|-----------------------|-------------------------------------|----------------------------------------|---------------------|
| `inception`           | Inception, TensorFlow 1's bilinear  | shuffled, a chunk for each 5000        | all pairs           |
| `inception_adm_exact` | the same                            | file order, chunks of 5000, last short | none                |
| `torch_fidelity`      | the same                            | shuffled with seed 2020, 10 chunks     | 100 subsets of 1000 |
| `pytorch_fid`         | Inception, torch's bilinear         | none                                   | none                |
| `efficientnet_lite0`  | EfficientNet-Lite0, torch's bicubic | as `inception`                         | all pairs           |
| `.._lite0_deep`       | the same, 1280 features of its head | none                                   | all pairs           |
| `dinov2_vit_..`       | DINOv2, TensorFlow 1's bilinear     | none                                   | all pairs           |
| `clip_vit_..`         | CLIP, TensorFlow 1's bilinear       | none                                   | all pairs, and CMMD |

FID, sFID, precision and recall have one definition; `Protocol.scores` says which a protocol gives. `inception` has the conventions
of the evaluator that the paper's code ships (arXiv 2105.05233, guided-diffusion's evaluations/evaluator.py), but for the order of
images: class-ordered files make its inception score meaningless (`iec.metrics.inception_score`), and a short last chunk does not
weigh as much as a full one. FID, sFID, precision and recall do not depend on order. Every label carries the protocol, so no two of
them share a column of a table.

Precision, recall and KID over subsets also depend on the real images whose features are there (``real_features`` in records):
min(n, 5000) in a reference made from images, all of arr_0 in an imported one. ADM's reference files have 10,000, and its distances
are float16; torch-fidelity takes all real images. So put these three beside published ones only with equal numbers of real images.
`scripts/check_metrics.py` compares the protocols with the packages at equal ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from iec.errors import ConfigError
from iec.metrics.extractors.efficientnet import EffNetLite0, EffNetLite0Deep
from iec.metrics.extractors.features import Extractor, Features
from iec.metrics.extractors.inception import PYTORCH_FID, Inception
from iec.metrics.extractors.registered import CLIP_BASE, CLIP_LARGE, DINOV2_LARGE, DINOV2_SMALL, Card, Registered
from iec.metrics.metric import OWN_RULES, Rules
from iec.metrics.references.reference import Reference
from iec.metrics.scores import NAMES, Score, score_features


@dataclass(frozen=True)
class Protocol:
    """What is done to images to get scores.

    label: as printed in ``FID (label)``. make: device -> extractor. default: the scores that are given unless others are asked for.
    on_request: the others that it can give. beside: protocols whose scores stand beside its own unless told otherwise.
    """

    name: str
    label: str
    make: Callable[[torch.device | str], Extractor]
    default: tuple[str, ...]
    on_request: tuple[str, ...] = ()
    rules: Rules = OWN_RULES
    beside: tuple[str, ...] = ()

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of all scores that it can give."""
        return self.default + self.on_request

    def extractor(self, device: torch.device | str = "cpu") -> Extractor:
        """Raises `WeightsError` if the network's weights are missing or do not fit."""
        return self.make(device)

    def check(self, names: Sequence[str]) -> None:
        """Raises `ConfigError` for a score that it cannot give."""
        for name in names:
            if name not in self.scores:
                raise ConfigError(f"The protocol {self.name} has no score {name!r}; choose from {', '.join(self.scores)}.")

    def score(
        self, features: Features, reference: Reference, names: Sequence[str] | None = None, bootstrap: int = 200, seed: int = 0
    ) -> dict[str, Score]:
        """`score_features` by these rules; the default scores if ``names`` is None."""
        names = self.default if names is None else names
        self.check(names)
        return score_features(features, reference, self.label, names, bootstrap, seed, self.rules)


def _pytorch_fid(device: torch.device | str) -> Inception:
    return Inception(device, PYTORCH_FID)


def _registered(card: Card) -> Protocol:
    """Named as the extractor, so that the file of a reference says whose it is."""
    clip, more = card.layer == "clip", ("kid", "precision", "recall", "fid_inf")
    name = card.name.replace("-", "_")
    return Protocol(name, card.label, partial(Registered, card), ("cmmd", "fid") if clip else ("fid",), more, Rules(linear=True))


_ADM = ("fid", "sfid", "is", "precision", "recall")
_ALL = {
    p.name: p
    for p in (
        Protocol(
            "efficientnet_lite0",
            EffNetLite0.label,
            EffNetLite0,
            NAMES,
            ("precision", "recall", "fid_inf"),
            beside=("efficientnet_lite0_deep",),
        ),
        Protocol(
            "efficientnet_lite0_deep",
            EffNetLite0Deep.label,
            EffNetLite0Deep,
            ("fid",),
            ("kid", "precision", "recall", "fid_inf"),
            Rules(linear=True),
        ),
        Protocol("inception", "Inception", Inception, (*_ADM, "kid"), ("fid_inf",), Rules(linear=True)),
        Protocol("inception_adm_exact", "Inception, ADM", Inception, _ADM, (), Rules("adm", linear=True)),
        Protocol("pytorch_fid", "pytorch-fid", _pytorch_fid, ("fid",), ("fid_inf",), Rules(linear=True)),
        Protocol(
            "torch_fidelity",
            "torch-fidelity",
            Inception,
            ("fid", "is", "kid", "precision", "recall"),
            (),
            Rules("torch_fidelity", kid_subsets=100, linear=True),
        ),
        *map(_registered, (DINOV2_SMALL, DINOV2_LARGE, CLIP_BASE, CLIP_LARGE)),
    )
}
PROTOCOLS = tuple(_ALL)


def protocol(name: str) -> Protocol:
    """The protocol of that name. Raises `ConfigError` naming the known ones."""
    if name not in _ALL:
        raise ConfigError(f"Unknown metrics {name!r}; choose one of {', '.join(PROTOCOLS)}.")
    return _ALL[name]
