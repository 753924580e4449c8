"""Environments of real processes for chaos tests, as in integration, and what a stall prints."""

from pathlib import Path

import pytest

from tests.chaos.harness import Tally
from tests.integration.conftest import env, no_processes_left, zero_copy_thread

__all__ = ["env", "no_processes_left", "zero_copy_thread"]


@pytest.fixture
def tally(tmp_path: Path) -> Tally:
    """Counts executions across processes."""
    return Tally(str(tmp_path / "tally"))
