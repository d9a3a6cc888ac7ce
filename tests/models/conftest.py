import pytest

from tests.models.tiny import tiny


@pytest.fixture
def tiny_cards(monkeypatch):
    """``model=NAME`` means the tiny version of the model in this test."""
    monkeypatch.setattr("iec.models.source.card", tiny)
