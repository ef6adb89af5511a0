"""Settings: units, YAML without surprises, and typos that are understood."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.run.settings import SegmentSettings, make_settings
from pipeline.run.yaml_file import read_yaml

TYPOS = {
    "overlp": "overlap", "ovrlap": "overlap", "overlapp": "overlap", "patchs": "patch", "ptach": "patch",
    "patch_size": "patch", "tiles": "tile", "tiel": "tile", "tilling": "tiling", "tilng": "tiling", "tapr": "taper",
    "tapper": "taper", "paddding": "padding", "pading": "padding", "devise": "device", "devce": "device",
    "precison": "precision", "precission": "precision", "probabilites": "probabilities",
    "probabilties": "probabilities",
    "vector": "vectors", "vectros": "vectors", "min-aera": "min_area", "minarea": "min_area", "clustr": "cluster",
    "wokers": "workers", "worker": "workers", "memry": "memory", "scrach": "scratch", "no_data": "nodata",
    "asume_crs": "assume_crs", "class_name": "class_names",
}  # fmt: skip


def test_f2_typos_are_understood() -> None:
    right = 0
    for typo, meant in TYPOS.items():
        with pytest.raises(UsageError) as caught:
            make_settings({typo: 1})
        right += f"did you mean {meant!r}" in caught.value.what
    assert right >= len(TYPOS) - 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"patch": "64 px"}, 64), ({"patch": "64"}, 64), ({"patch": 64}, 64), ({"min_area": "500 m2"}, 500.0),
        ({"min_area": "500 m²"}, 500.0), ({"memory": "8GB"}, 8_000_000_000), ({"memory": "512MiB"}, 2**29),
        ({"vectors": "none"}, ()), ({"vectors": "gpkg, fgb"}, ("gpkg", "fgb")), ({"bands": "4,3,2"}, ("4", "3", "2")),
        ({"bands": [4, 3]}, ("4", "3")), ({"scale": 0.5}, (0.5,)), ({"min-area": 3}, 3.0),
    ],
)  # fmt: skip
def test_values_and_units(given: dict[str, object], expected: object) -> None:
    name = next(iter(given)).replace("-", "_")
    assert getattr(make_settings(given), name) == expected


def test_f4_yaml_has_no_surprises(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("a: no\nb: 010\nc: 12:30:45\nd: 1e3\ne: yes\nf: 0x10\ng: true\nh:\n")
    assert read_yaml(path) == {
        "a": "no", "b": 10, "c": "12:30:45", "d": 1000.0, "e": "yes", "f": "0x10", "g": True, "h": None,
    }  # fmt: skip


def test_defaults_are_valid() -> None:
    assert make_settings({}) == SegmentSettings()
