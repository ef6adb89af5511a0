"""`scenemask vectorize` with several masks: one file, nothing twice, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine

import pipeline as sm
from pipeline.errors import InputError, UsageError
from pipeline.legend import Legend, default_legend
from pipeline.store.cog import LEGEND_TAG, MULTILABEL_TAG, legend_json
from pipeline.vector import SCENE_TAG
from tests.commands import Cli, assert_block
from tests.scenes import NORTH_UP, smooth_values, write_scene

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LEGEND = default_legend(["land", "water", "snow"], background="land")
ROWS, COLS = 150, 200


def _write(
    path: Path, bands: NDArray[np.uint8], legend: Legend | None = LEGEND, *, at: tuple[int, int] = (0, 0)
) -> Path:
    """A mask with its classes, `at` rows and columns from the origin."""
    write_scene(path, bands, nodata=255, transform=NORTH_UP @ Affine.translation(at[1], at[0]))
    if legend is not None:
        with rasterio.open(path, "r+") as file:
            file.update_tags(**{LEGEND_TAG: legend_json(legend), SCENE_TAG: "one"})
            if legend.multilabel:
                file.update_tags(**{MULTILABEL_TAG: "YES"})
    return path


@pytest.fixture(scope="module")
def values() -> NDArray[np.uint8]:
    """Three classes and a corner without data."""
    data = np.digitize(smooth_values(1, (ROWS, COLS)), [400, 600]).astype(np.uint8)
    data[:, :20, 90:120] = 255
    return data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, values: NDArray[np.uint8]) -> Path:
    return _write(tmp_path_factory.mktemp("whole") / "mask.tif", values)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, values: NDArray[np.uint8]) -> tuple[Path, Path]:
    """The mask in two that overlap; the right one is wrong where both have a class."""
    folder = tmp_path_factory.mktemp("pair")
    right = values[:, :, 80:].copy()
    right[:, 30:, :50] = 0
    return _write(folder / "left.tif", values[:, :, :130]), _write(folder / "right.tif", right, at=(0, 80))


def _read(path: Path) -> Any:
    return geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "fgb", "parquet"])
@pytest.mark.parametrize(
    "options",
    [(), ("--only", "snow,0"), ("--min-area", "20000"), ("--min-area", "20000", "--sieve"), ("--simplify", "1 px")],
    ids=" ".join,
)
def test_e13_two_masks_give_the_file_of_one(
    cli: Cli, whole: Path, pair: tuple[Path, Path], tmp_path: Path, suffix: str, options: tuple[str, ...]
) -> None:
    one, two = tmp_path / "one" / f"p.{suffix}", tmp_path / "two" / f"p.{suffix}"
    assert cli("vectorize", whole, "-o", one, *options)[0] == 0
    status, text, err = cli("vectorize", *pair, "-o", two, *options)
    frame = _read(two)
    assert (status, text) == (0, f"{len(frame)} polygons -> {two}\n"), err
    assert len(frame) > 3
    assert two.read_bytes() == one.read_bytes()


def test_the_order_decides(pair: tuple[Path, Path], whole: Path) -> None:
    left, right = pair
    assert sm.vectorize([str(left), right]).equals(sm.vectorize(whole))
    assert not sm.vectorize((right, left)).equals(sm.vectorize(whole))
    assert sm.vectorize([left]).equals(sm.vectorize(left))
    assert sm.vectorize([left, left]).equals(sm.vectorize(left))


def test_json_and_overwrite(cli: Cli, pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "p.fgb"
    status, text, _ = cli("vectorize", *pair, "-o", out, "--json")
    assert status == 0
    assert json.loads(text) == {"path": str(out), "polygons": len(_read(out))}
    status, _, err = cli("vectorize", *pair, "-o", out)
    assert status == 5
    assert_block(err, "OU-030")
    assert cli("vectorize", *pair, "-o", out, "--overwrite")[0] == 0


def test_classes_that_overlap(cli: Cli, tmp_path: Path) -> None:
    legend = Legend(LEGEND.classes, multilabel=True)
    bands = (smooth_values(3, (ROWS, COLS), seed=1) > 500).astype(np.uint8)
    bands[:, 40:60, 20:70] = 255
    one = _write(tmp_path / "one.tif", bands, legend)
    top = _write(tmp_path / "top.tif", bands[:, :90], legend)
    rest = bands[:, 50:].copy()
    rest[:, 10:40, 70:] ^= 1  # below the first one
    low = _write(tmp_path / "low.tif", rest, legend, at=(50, 0))
    assert cli("vectorize", top, low, "-o", tmp_path / "two.parquet")[0] == 0
    frame = _read(tmp_path / "two.parquet")
    assert set(frame["class_name"]) == {"water", "snow"}
    assert sorted(frame["id"]) == sorted(sm.vectorize(one)["id"])


OTHERS: dict[str, tuple[Legend | None, str]] = {
    "no-names": (None, "no class names"),
    "another-name": (default_legend(["land", "water", "ice"], background="land"), "ice (2)"),
    "one-more": (default_legend(["land", "water", "snow", "ice"], background="land"), "ice (3)"),
    "order": (default_legend(["land", "snow", "water"], background="land"), "snow (1), water (2)"),
    "background": (default_legend(["land", "water", "snow"]), "land (0), water (1)"),
    "overlapping": (Legend(LEGEND.classes, multilabel=True), "the overlapping classes land"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_classes_are_refused(cli: Cli, whole: Path, tmp_path: Path, case: str) -> None:
    legend, words = OTHERS[case]
    bands = np.zeros((3 if legend and legend.multilabel else 1, 9, 9), np.uint8)
    other = _write(tmp_path / "other.tif", bands, legend)
    status, _, err = cli("vectorize", whole, other, "-o", tmp_path / "p.fgb")
    assert status == 3
    assert_block(err, "IN-034")
    assert words in err
    assert "land (0, background), water (1), snow (2); expected the same classes" in err
    assert "other.tif" in err.split("  where  ")[1]
    assert not (tmp_path / "p.fgb").exists()


def test_colours_are_no_classes(whole: Path, tmp_path: Path) -> None:
    painted = Legend(
        tuple(type(c)(value=c.value, name=c.name, color=(1, 2, 3), background=c.background) for c in LEGEND)
    )
    other = _write(tmp_path / "other.tif", np.ones((1, 9, 9), np.uint8), painted)
    assert len(sm.vectorize([whole, other])) > 0


def test_other_grids_are_refused(cli: Cli, whole: Path, tmp_path: Path) -> None:
    other = _write(tmp_path / "other.tif", np.zeros((1, 9, 9), np.uint8))
    with rasterio.open(other, "r+") as file:
        file.transform = NORTH_UP @ Affine.translation(0.5, 0)
    status, _, err = cli("vectorize", whole, other, "-o", tmp_path / "p.fgb")
    assert status == 3
    assert_block(err, "IN-033")
    assert "0.500 columns" in err


def test_no_mask_at_all(cli: Cli, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="CF-035"):
        sm.vectorize([])
    status, _, err = cli("vectorize", "-o", tmp_path / "p.fgb")
    assert status == 2
    assert_block(err, "CF-007")
    with pytest.raises(InputError, match="IN-001"):
        sm.vectorize([whole, tmp_path / "nowhere.tif"])
