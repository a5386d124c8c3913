"""The guard itself: what it lets pass and what not."""

from __future__ import annotations

import pytest

from tests.counted.conftest import verdict


@pytest.mark.parametrize(
    ("found", "outcome"), [(100, "within"), (110, "within"), (111, "over"), (91, "within"), (90, "under")]
)
def test_verdict(found: float, outcome: str) -> None:
    assert verdict(found, 100) == outcome
