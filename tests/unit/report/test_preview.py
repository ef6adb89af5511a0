"""preview.png: whole, small, and telling the truth about colours."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from affine import Affine

from pipeline.legend import default_legend
from pipeline.report import read_overview_mask, write_preview
from pipeline.report.glyphs import text_pixels
from pipeline.report.preview import compose, encode_png, overlay, stretch_rgb

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LEGEND = default_legend(["ground", "road", "water"], background="ground")


def _decode(path: Path) -> NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, driver="PNG") as source:
            pixels: NDArray[np.uint8] = source.read().transpose(1, 2, 0)
    return pixels


def _scene(path: Path, pixels: NDArray[np.generic], nodata: float | None = None) -> Path:
    count, height, width = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=count,
        dtype=pixels.dtype.name,
        nodata=nodata,
        transform=Affine(1, 0, 10, 0, -1, 10),
    ) as out:
        out.write(pixels)
    return path


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (40, 30), (256, 7), (300, 7)])
def test_png_is_read_by_others(tmp_path: Path, shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    (tmp_path / "x.png").write_bytes(encode_png(picture))
    np.testing.assert_array_equal(_decode(tmp_path / "x.png"), picture)


@pytest.mark.parametrize("shape", [(1, 1), (60, 40), (40, 300), (300, 40)])
def test_the_preview_holds_the_scene_untouched(tmp_path: Path, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    mask = rng.integers(0, 3, shape, dtype=np.uint8)
    write_preview(tmp_path / "preview.png", rgb=rgb, mask=mask, legend=LEGEND)
    picture = _decode(tmp_path / "preview.png")
    np.testing.assert_array_equal(picture[12 : 12 + shape[0], 12 : 12 + shape[1]], rgb)
    assert picture.shape[1] >= 480
    assert [p.name for p in tmp_path.iterdir()] == ["preview.png"]


def test_small_scenes_can_be_enlarged(tmp_path: Path) -> None:
    rgb = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    write_preview(tmp_path / "p.png", rgb=rgb, mask=np.zeros((4, 4), np.uint8), legend=LEGEND, scale=3)
    np.testing.assert_array_equal(_decode(tmp_path / "p.png")[12:24, 12:24], rgb.repeat(3, 0).repeat(3, 1))


def test_sizes_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one size"):
        write_preview(
            tmp_path / "p.png", rgb=np.zeros((4, 4, 3), np.uint8), mask=np.zeros((4, 5), np.uint8), legend=LEGEND
        )


def test_wide_scenes_lie_above_their_mask_and_others_beside() -> None:
    wide = compose(np.zeros((50, 600, 3), np.uint8), np.ones((50, 600, 3), np.uint8), [])
    tall = compose(np.zeros((600, 500, 3), np.uint8), np.ones((600, 500, 3), np.uint8), [])
    assert wide.shape[:2] == (50 + 12 + 50 + 24, 600 + 24)
    assert tall.shape[:2] == (600 + 24, 500 + 12 + 500 + 24)


def test_overlay_colours_classes_leaves_background_grey_and_nodata_paper() -> None:
    rgb = np.full((2, 2, 3), (200, 100, 50), np.uint8)
    picture = overlay(rgb, np.array([[0, 1], [2, 255]], np.uint8), LEGEND)
    assert len(set(picture[0, 0].tolist())) == 1
    assert (picture[1, 1] == 250).all()
    for value, place in ((1, (0, 1)), (2, (1, 0))):
        color = np.array(LEGEND.classes[value].color)
        assert np.abs(picture[place].astype(int) - color).sum() < np.abs(picture[0, 0].astype(int) - color).sum()


def test_a_class_without_pixels_is_not_in_the_legend(tmp_path: Path) -> None:
    rgb, mask = np.zeros((60, 60, 3), np.uint8), np.ones((60, 60), np.uint8)
    heights = []
    for name, counts in (("none", [0, 0, 0]), ("one", [0, 5, 0]), ("many", [10**9, 5, 7])):
        write_preview(tmp_path / name, rgb=rgb, mask=mask, legend=LEGEND, class_px=counts)
        heights.append(_decode(tmp_path / name).shape[0])
    assert heights[0] < heights[1] <= heights[2]


def test_stretch_ignores_nodata_and_survives_flat_bands() -> None:
    rng = np.random.default_rng(0)
    band = rng.integers(1000, 2000, (1, 50, 50)).astype(np.uint16)
    valid = np.ones((50, 50), bool)
    valid[:10] = False
    band[:, :10] = 65535
    picture = stretch_rgb(band, valid)
    assert (picture[:10] == 250).all()
    assert picture[10:].min() == 0
    assert picture[10:].max() == 255
    assert (picture[..., 0] == picture[..., 2]).all()
    assert np.isfinite(stretch_rgb(np.full((3, 4, 4), 7.0), np.ones((4, 4), bool))).all()
    assert (stretch_rgb(np.zeros((3, 4, 4)), np.zeros((4, 4), bool)) == 250).all()


def test_the_small_mask_fits_the_small_scene(tmp_path: Path) -> None:
    mask = np.repeat(np.arange(3, dtype=np.uint8), 333)[np.newaxis, np.newaxis].repeat(77, 1)
    small = read_overview_mask(_scene(tmp_path / "m.tif", mask), default_legend(["a", "b", "c"]), shape=(8, 100))
    assert small.shape == (8, 100)
    assert set(np.unique(small)) == {0, 1, 2}


def test_where_classes_overlap_the_rarer_lies_on_top() -> None:
    legend = dataclasses.replace(default_legend(["wide", "narrow", "none"]), multilabel=True)
    mask = np.zeros((3, 6, 6), np.uint8)
    mask[0, :, :4], mask[1, 2, :] = 1, 1
    mask[:, 0] = legend.nodata
    grey = np.full((6, 6, 3), 128, np.uint8)
    picture = overlay(grey, mask, legend)
    alone = [overlay(grey, np.full((6, 6), value), default_legend(["wide", "narrow", "none"])) for value in (0, 1)]
    assert (picture[0] == 250).all()
    assert (picture[1, :4] == alone[0][1, :4]).all()
    assert (picture[2] == alone[1][2]).all()
    assert (picture[1, 5] == picture[5, 5]).all()
    assert len({tuple(picture[row, col]) for row, col in ((0, 0), (1, 0), (2, 0), (1, 5))}) == 4


def test_text_is_drawn_in_plain_letters() -> None:
    assert text_pixels("é").shape == (8, 6)
    np.testing.assert_array_equal(text_pixels("é"), text_pixels("e"))
    np.testing.assert_array_equal(text_pixels("森"), text_pixels("?"))
    assert text_pixels("").shape[1] == 0
    assert text_pixels("ab", scale=2).shape == (16, 24)
    letters = [text_pixels(chr(c)).tobytes() for c in range(32, 127)]
    assert len(set(letters)) == 95
    assert "".join("#" if ink else "." for ink in text_pixels("L")[:, 0]) == "#######."
