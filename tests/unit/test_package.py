"""The house keeps its rules: imports one way, quick to load, every error explained, every settings file loads."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline.run.settings import SegmentSettings, make_settings
from pipeline.yaml_file import read_yaml

ROOT = Path(__file__).resolve().parents[2]


def test_rooms_import_one_way() -> None:
    run = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout


def test_importing_the_package_is_quick_and_loads_no_torch() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import pipeline, pipeline.cli; "
        "taken = time.perf_counter() - start; "
        "heavy = {'torch', 'dask', 'distributed', 'rasterio', 'numpy'} & set(sys.modules); "
        "print(taken, heavy or '')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    taken, *heavy = run.stdout.split()
    assert not heavy
    assert float(taken) < 0.5


def test_public_names_are_what_can_be_imported() -> None:
    assert sorted(pipeline.__all__) == list(pipeline.__all__)
    for name in pipeline.__all__:
        assert getattr(pipeline, name) is not None
    with pytest.raises(AttributeError, match="no attribute"):
        _ = pipeline.nothing_of_the_kind


@pytest.mark.parametrize("room", ["grid", "scene", "model", "infer", "store", "vector", "train", "report"])
def test_each_room_lists_its_names(room: str) -> None:
    module = importlib.import_module(f"pipeline.{room}")
    assert module.__doc__
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_every_error_code_is_explained() -> None:
    """All of them, wherever they stand in the code, and nothing else; each row with a cause and a fix."""
    used = set()
    for path in (ROOT / "pipeline").rglob("*.py"):
        used |= set(re.findall(r'"([A-Z]{2,3}-[0-9]{3})"', path.read_text()))
    rows = re.findall(
        r'^\| <a id="([^"]*)"></a>(\S+) \|(.*)\|$', (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE
    )
    explained = [code for _, code, _ in rows]
    assert len(explained) == len(set(explained))
    assert used == set(explained)
    for anchor, code, text in rows:
        cause, fix = re.split(r"(?<!\\)\|", text)[-2:]
        assert anchor == code.lower()
        assert len(cause.strip()) > 10, code
        assert len(fix.strip()) > 4, code


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "segment").glob("*.yaml")), ids=lambda p: p.name)
def test_each_settings_file_loads(path: Path) -> None:
    given = {key: value for key, value in read_yaml(path).items() if value is not None}
    settings = make_settings(given, where=str(path))
    assert set(given) <= settings.model_fields_set


def test_full_yaml_names_every_option_with_its_default() -> None:
    written = read_yaml(ROOT / "configs" / "segment" / "full.yaml")
    assert set(written) == set(SegmentSettings.model_fields)
    assert make_settings(written) == SegmentSettings()
