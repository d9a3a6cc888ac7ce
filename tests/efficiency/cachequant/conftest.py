import pytest

from iec.efficiency.cachequant import FloatRuns
from iec.efficiency.caching import CachedUNetNetwork
from iec.sampling.timetable import NoiseSchedule, Timetable
from tests.efficiency.caching.unets import make

SHAPE = (3, 8, 8)
TABLE = Timetable.spaced("uniform", 5, NoiseSchedule())
REFRESH = frozenset({0, 3})


@pytest.fixture(scope="session")
def make_runs():
    """Float runs of one of the tiny UNets, cut at ``cut``, five steps long."""

    def made(name="pixel", cut="pixel", cond=None, batch_size=2):
        return FloatRuns(CachedUNetNetwork(make(name)[0], cut), TABLE, SHAPE, seed=7, batch_size=batch_size, cond=cond)

    return made
