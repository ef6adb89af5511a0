from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline import scene


def test_public_names_are_importable() -> None:
    assert set(scene.__all__) == set(scene._HOMES)
    for name in scene.__all__:
        assert getattr(scene, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = scene.nothing


def test_importing_the_room_loads_nothing_heavy() -> None:
    code = (
        "import sys, pipeline.scene; print([m for m in ('rasterio', 'xarray', 'scipy', 'numpy') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_room_knows_no_torch_and_no_dask() -> None:
    code = (
        "import sys; from pipeline import scene; [getattr(scene, n) for n in scene.__all__];"
        "print([m for m in ('torch', 'dask', 'distributed') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
