import pytest
from huggingface_hub.errors import HTTPError as HubError

from iec.errors import WeightsError
from iec.io.hub import hub_folder


@pytest.mark.parametrize("error", [HubError("proxy"), ValueError("no name of a repository"), FileNotFoundError("not cached")])
def test_whatever_the_hub_raises_ends_as_a_typed_error(monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(WeightsError, match=r"(?s)hf download a/b --revision 1 --include '\*\.json'.*model.weights=DIR"):
        hub_folder("a/b", "1", ["*.json"], "model.weights=DIR")


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "IEC_OFFLINE"])
def test_offline_only_the_cache_is_looked_at(monkeypatch, variable, tmp_path):
    asked = []

    def cached(repository, *, local_files_only, **options):
        asked.append(local_files_only)
        return tmp_path

    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
    for name in ("HF_HUB_OFFLINE", "IEC_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    assert hub_folder("a/b", None, ["*.json"], "model.weights=DIR") == tmp_path
    monkeypatch.setenv(variable, "1")
    hub_folder("a/b", None, ["*.json"], "model.weights=DIR")
    assert asked == [False, True]
