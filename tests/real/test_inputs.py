"""Each odd, varied or damaged file through `inspect` and `segment`: the right mask, or the right refusal."""

from __future__ import annotations

import csv
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.enums import ColorInterp

from pipeline.model import save_model
from tests.commands import Cli, assert_block
from tests.real.inputs import PAGE, Row, page, read_table
from tests.scenes import save_threshold_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.real
ROWS = read_table()
_SHIFT = 0.21
"""Of the sum, in standard deviations: an image of one value then has a class that is no tie."""
_LARGE = {
    "odd/real/sparse_rgb_8448.tif",
    "odd/real/no_georef_2000.jpg",
    "odd/real/i16_nodata_min_2658x2667.tif",
    "odd/real/rgb_jpeg_1500_epsg4326.tif",
}
"""Segmented with --run-slow only."""


def test_every_file_is_in_the_table(real_data: Path) -> None:
    with (real_data / "rasters.csv").open() as file:
        names = {row["file"] for row in csv.DictReader(file)}
    odd = {name for name in names if name.split("/")[0] in {"odd", "variants", "corrupt"}}
    assert {row.file for row in ROWS} == odd
    assert len(ROWS) == len(odd) == 73


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m tests.real.inputs`"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.file)
def test_inspect(cli: Cli, real_data: Path, row: Row) -> None:
    status, out, err = cli("inspect", real_data / row.file, "--json")
    if row.inspect != "ok":
        assert (status, json.loads(out)["error"]["code"]) == (3, row.inspect)
        assert_block(err, row.inspect)
        return
    assert status == 0, err
    facts = json.loads(out)
    with _opened(real_data / row.file) as file:
        assert [facts["height"], facts["width"]] == list(file.shape)
        assert facts["transform"] == list(file.transform.to_gdal())
        assert (facts["crs"] is None) == (file.crs is None)
        assert len(facts["bands"]) == len(_bands(file))


@pytest.mark.parametrize(
    "row", [pytest.param(r, marks=pytest.mark.slow if r.file in _LARGE else ()) for r in ROWS], ids=lambda row: row.file
)
def test_segment(cli: Cli, real_data: Path, weights: Any, tmp_path: Path, row: Row) -> None:
    path = real_data / row.file
    expected = _expected(path) if "ok" in (row.segment, row.outcome) or row.segment == "empty" else None
    bands = 1 if expected is None else len(expected.mean)
    scaling = ["--mean", "0"] if expected is None else [f"--mean={expected.means}", f"--std={expected.stds}"]
    command = ["segment", path, "-m", weights(bands), "--class-names", "low,high", "--vectors", "none", *scaling]
    command += ["--backend", "torch", "--precision", "float32"]
    for number, (options, outcome) in enumerate((((), row.segment), ((row.options,), row.outcome))):
        if not outcome:
            continue
        out_dir = tmp_path / str(number)
        status, _, err = cli(*command, "-o", out_dir, *options)
        if outcome in ("ok", "empty"):
            assert status == 0, err
            assert expected is not None
            _compare(out_dir, expected, outcome)
        else:
            assert status == 3, err
            assert_block(err, outcome)
            assert not (out_dir / "mask.tif").exists()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Weights for so many bands: class 1 where their scaled sum exceeds 0."""
    made: dict[int, Path] = {}

    def get(bands: int) -> Path:
        if bands not in made:
            folder = tmp_path_factory.mktemp(f"bands{bands}")
            model = save_threshold_model(folder, bands=bands)
            with torch.no_grad():
                model.network.encoder[0][0].weight[0, :, 1, 1] = 1.0  # type: ignore[index,union-attr]
            save_model(folder, model.network, model.spec)
            made[bands] = folder / "weights.safetensors"
        return made[bands]

    return get


@dataclass(frozen=True, kw_only=True)
class _Expected:
    """What rasterio's own read of a file gives."""

    mean: list[float]
    std: list[float]
    score: NDArray[np.float64]
    """Sum of the scaled bands `(y, x)`."""
    valid: NDArray[np.bool_]
    transform: Any
    crs: Any

    @property
    def means(self) -> str:
        return ",".join(map(repr, self.mean))

    @property
    def stds(self) -> str:
        return ",".join(map(repr, self.std))


def _opened(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rasterio.open(path)


def _bands(file: Any) -> list[int]:
    return [i + 1 for i, color in enumerate(file.colorinterp) if color != ColorInterp.alpha]


def _expected(path: Path) -> _Expected:
    with _opened(path) as file:
        wanted = _bands(file)
        data = file.read(wanted).astype(np.float64)
        valid = (file.read_masks(wanted) > 0).all(axis=0) & np.isfinite(data).all(axis=0)
        for number in set(range(1, file.count + 1)) - set(wanted):
            valid &= file.read(number) > 0
        transform, crs = file.transform, file.crs
    some = [band[valid] if valid.any() else np.zeros(1) for band in data]
    std = [float(band.std()) or 1.0 for band in some]
    mean = [float(np.median(band)) - _SHIFT * s for band, s in zip(some, std, strict=True)]
    with np.errstate(all="ignore"):
        score = sum((band - m) / s for band, m, s in zip(data, mean, std, strict=True))
    return _Expected(mean=mean, std=std, score=np.asarray(score), valid=valid, transform=transform, crs=crs)


def _compare(out_dir: Path, expected: _Expected, outcome: str) -> None:
    with _opened(out_dir / "mask.tif") as file:
        mask = file.read(1)
        assert np.allclose(file.transform, expected.transform, rtol=1e-12)
        assert (file.crs is None) == (expected.crs is None)
    np.testing.assert_array_equal(mask != 255, expected.valid)
    clear = expected.valid & (np.abs(expected.score) > 1e-4)  # float32 rounds elsewhere
    assert clear.sum() >= 0.99 * expected.valid.sum()
    np.testing.assert_array_equal(mask[clear] == 1, expected.score[clear] > 0)
    status = json.loads((out_dir / "run.json").read_text())["status"]
    assert status == outcome
