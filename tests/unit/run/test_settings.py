"""Settings: units, YAML without surprises, and typos that are understood."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.run.settings import SegmentSettings, make_settings
from pipeline.yaml_file import read_yaml

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
        ({"patch": "64 px"}, 64), ({"patch": "64"}, 64), ({"patch": 64}, 64), ({"min_area": "500 m2"}, (500.0, "m2")),
        ({"min_area": "500 m²"}, (500.0, "m2")), ({"memory": "8GB"}, 8_000_000_000), ({"memory": "512MiB"}, 2**29),
        ({"vectors": "none"}, ()), ({"vectors": "gpkg, fgb"}, ("gpkg", "fgb")), ({"bands": "4,3,2"}, ("4", "3", "2")),
        ({"bands": [4, 3]}, ("4", "3")), ({"scale": 0.5}, (0.5,)), ({"min-area": 3}, (3.0, "m2")),
    ],
)  # fmt: skip
def test_values_and_units(given: dict[str, object], expected: object) -> None:
    name = next(iter(given)).replace("-", "_")
    assert getattr(make_settings(given), name) == expected


def test_f4_yaml_has_no_surprises(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("a: no\nb: 010\nc: 12:30:45\nd: 1e3\ne: yes\nf: 0x10\ng: true\nh:\ni: -7\nj: +5\nk: 0\nl: .5\n")
    assert read_yaml(path) == {
        "a": "no", "b": "010", "c": "12:30:45", "d": 1000.0, "e": "yes", "f": "0x10", "g": True, "h": None,
        "i": -7, "j": "+5", "k": 0, "l": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("class_names: [010, 7, 0x10, no]", ("010", "7", "0x10", "no")), ("bands: [08, 4]", ("08", "4")),
        ("patch: 064", 64), ("patch: 064 px", 64), ("workers: 02", 2), ("nodata: -9999", -9999.0), ("nodata: 1e3", 1e3),
        ("nodata: -.5", -0.5), ("keep: true", True), ("scale: [1e-4, 2]", (1e-4, 2.0)), ("min_area: 1e4", (1e4, "m2")),
    ],
)  # fmt: skip
def test_f4_text_stays_as_it_was_written(tmp_path: Path, text: str, expected: object) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    settings = make_settings(read_yaml(path))
    assert getattr(settings, text.partition(":")[0]) == expected


@pytest.mark.parametrize(
    "text",
    [
        "patch: true", "workers: true", "nodata: false", "threshold: true", "scale: [true, 1]", "memory: true",
        "class_names: [true, false]", "bands: [1, true]", "cluster: true", "overlap: true", "vectors: [true]",
    ],
)  # fmt: skip
def test_f4_true_is_no_number_and_no_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match="true or false") as caught:
        make_settings(read_yaml(path))
    assert text.partition(":")[0] in caught.value.what


@pytest.mark.parametrize("text", ["class_names: [1.0]", "class_names: [1e3, a]", "class_names: [~]", "bands: [.5]"])
def test_f4_names_that_look_like_numbers_need_quotes(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match="quotes"):
        make_settings(read_yaml(path))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("patch: !!int x", "(?s)int.*not allowed.*line 1, column 8"),
        ("patch: !!float x", "not allowed"), ("keep: !!bool maybe", "not allowed"), ("a: !!timestamp 1", "not allowed"),
        ("a: !!binary x", "not allowed"), ("a: !mine x", "not allowed"), ("a: ! x", "not allowed"),
        ("a: !!set {b}", "not allowed"), ("? [a, b]\n: 1", "cannot be a key"), ("{a: 1}: 2", "cannot be a key"),
        ("a: " + "[" * 3000, "nested too deeply"), ("a: \x00", "not valid YAML"), ("a: *b", "aliases"),
    ],
)  # fmt: skip
def test_f1_files_that_are_no_settings(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=told) as caught:
        read_yaml(path)
    assert caught.value.code == "CF-003"
    assert caught.value.fix


def test_a_number_of_any_length_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("patch: " + "9" * 5000)
    with pytest.raises(UsageError, match="patch"):
        make_settings(read_yaml(path))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"workers": 0, "tile": 0, "taper": "x", "min_area": "5 ft2", "overlp": 3},
            ["workers: ", "tile: ", "taper: ", "min_area: ", "did you mean 'overlap'"],
        ),
        ({"workers": 0, "overlap": 64, "patch": 64}, ["workers: ", "overlap 64 px must be smaller than patch 64 px"]),
        (
            {
                "overlap": 64,
                "patch": 64,
                "tiling": "exact",
                "cluster": "slurmy",
                "assume_crs": "x",
                "allow_no_crs": True,
            },
            ["smaller than patch", "overlap belongs to blend mode", "cluster 'slurmy'", "exclude each other"],
        ),
        ({"overwrite": True, "vectors": "shp", "cluster": "x"}, ["give --overwrite", "vectors.0: ", "cluster 'x'"]),
    ],
)
def test_f6_every_problem_is_listed_once(given: dict[str, object], told: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        make_settings(given)
    assert [caught.value.what.count(text) for text in told] == [1] * len(told), caught.value.what


def test_f6_a_wrong_value_is_not_compared_with_a_right_one() -> None:
    with pytest.raises(UsageError) as caught:
        make_settings({"patch": "5 m", "overlap": 2000})
    assert "smaller than" not in caught.value.what


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_a_nodata_value_may_be_no_number_and_survives_json(text: str) -> None:
    settings = make_settings({"nodata": text})
    document = json.loads(json.dumps(settings.model_dump(mode="json"), allow_nan=False))
    assert document["nodata"] == text
    assert str(SegmentSettings.model_validate(document).nodata) == text


@pytest.mark.parametrize("name", ["min_area", "mean", "std", "scale", "offset", "threshold"])
@pytest.mark.parametrize("value", ["nan", "inf", float("nan"), float("inf")])
def test_other_numbers_are_finite(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        make_settings({name: value})


def test_defaults_are_valid() -> None:
    assert make_settings({}) == SegmentSettings()
