"""What the tests of faults share: commands that start at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.commands import Starter

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> Iterator[Starter]:
    """Starts commands; one thread each, so that they disturb each other little."""
    with Starter(tmp_path_factory.mktemp("commands"), {"OMP_NUM_THREADS": "1"}) as made:
        yield made
