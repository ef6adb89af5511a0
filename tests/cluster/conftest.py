"""What cluster tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster.running import Known, make_known

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return make_known(tmp_path_factory.mktemp("known"))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    return tmp_path / "log"
