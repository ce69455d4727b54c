"""A cluster of several nodes, for tests that kill or stop what runs on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pipeline.drill.cluster import LocalCluster


@pytest.fixture
def two_nodes() -> Iterator[LocalCluster]:
    """A head and two nodes of one CPU each, on loopback; they end with the test."""
    from pipeline.drill.cluster import LocalCluster  # imports ray, which most tests here do not need

    with LocalCluster(2) as cluster:
        yield cluster
