"""What is recorded of the images of a cell: a commit for each shard, and the manifest over them all."""

from dataclasses import asdict, dataclass
from typing import Any

from iec.efficiency.cost import Cost
from iec.sampling.network import Calls

MANIFEST, PREPARED = "manifest.json", "prepared.json"


@dataclass(frozen=True)
class Commit:
    """A finished shard, shards/000000-000031.json.

    sha256, trace_sha256: of its file of images and of that of its trajectories, None without. count, trace: how many of each are
    kept. computed: images of the whole micro-batch, which calls and seconds are about. machine: see `describe_device`.
    """

    sha256: str
    trace_sha256: str | None
    count: int
    computed: int
    trace: int
    calls: Calls
    seconds: float
    machine: str


@dataclass(frozen=True)
class Manifest:
    """The images 0 .. num_images - 1 of a cell, manifest.json.

    shards: name of the file -> its sha256. hash: sha256 of the pixels alone, uint8 in order. calls_per_image: network calls by kind
    (the fields of `Calls`), and their ``total``. seconds_per_image: wall-clock of the sampling. machines: all that took part.
    """

    num_images: int
    shards: dict[str, str]
    hash: str
    calls_per_image: dict[str, float]
    seconds_per_image: float
    machines: tuple[str, ...]

    @classmethod
    def of(cls, commits: dict[str, Commit], num_images: int, pixels: str) -> "Manifest":
        """Totals over the ``commits``, by name of their file. pixels: the hash."""
        calls = sum((commit.calls for commit in commits.values()), Calls())
        computed = sum(commit.computed for commit in commits.values())
        return cls(
            num_images=num_images,
            shards={name: commit.sha256 for name, commit in commits.items()},
            hash=pixels,
            calls_per_image={kind: count / computed for kind, count in {**asdict(calls), "total": calls.total}.items()},
            seconds_per_image=sum(commit.seconds for commit in commits.values()) / computed,
            machines=tuple(sorted({commit.machine for commit in commits.values()})),
        )

    @property
    def seconds(self) -> float:
        """Of all images."""
        return self.seconds_per_image * self.num_images

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class PreparedRecord:
    """What was known once the network was prepared, prepared.json.

    refresh: the refresh steps, those that all images have with ``efficiency.schedule=adaptive``; None: every step. cost: of network
    calls; None: unknown. calibration_calls: of the technique and of the corrector, see `iec.Prepared`; None: unknown, as in records
    of older versions.
    """

    refresh: list[int] | None
    cost: Cost | None
    calibration_calls: int | None = None
