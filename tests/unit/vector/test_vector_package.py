"""The room's door: public names are loaded when they are asked for, and mean what they say."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

from pipeline import vector


@pytest.mark.parametrize("name", vector.__all__)
def test_public_names(name: str) -> None:
    assert getattr(vector, name) is not None


def test_modules_are_not_named_as_what_they_hold() -> None:
    """Python sets a module on its package when it is loaded; a function of that name could then not be called."""
    modules = {module.name for module in pkgutil.iter_modules(vector.__path__)}
    assert not modules & set(vector.__all__)


def test_runs_without_polygons_load_no_tables() -> None:
    """Pandas and what comes with it take a third of a second, which `segment --vectors none` does not need."""
    code = "import sys; import pipeline.run.segment; print(sorted({'pandas', 'pyogrio', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
