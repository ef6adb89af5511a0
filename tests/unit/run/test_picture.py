"""The preview's scene: samples of tiles, whatever the tiles were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.grid import Window, iter_windows
from pipeline.report.preview import stretch_rgb
from pipeline.run.picture import Picture
from pipeline.scene import Block

if TYPE_CHECKING:
    from pathlib import Path


def _block(pixels: np.ndarray[Any, Any], window: Window) -> Block:
    data = pixels[(slice(None), *window.slices_in(Window.from_bounds(0, 0, *pixels.shape[1:])))]
    return Block(data=data, valid=data > 0, all_valid=bool((data > 0).all()))


def _picture(pixels: np.ndarray[Any, Any], picture: Picture, tile: int, folder: Path) -> np.ndarray[Any, Any]:
    folder.mkdir()
    for core in iter_windows(pixels.shape[1:], (tile, tile)):
        picture.save_part(folder, core, _block(pixels, core), core)
    return picture.assemble(folder)


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    step=st.integers(1, 9),
    mean_of=st.sampled_from([1, 2]),
    tiles=st.tuples(st.integers(5, 80), st.integers(5, 80)),
)
def test_the_picture_does_not_depend_on_tiles(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, step: int, mean_of: int, tiles: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(height * 71 + width).integers(0, 200, (3, height, width)).astype(np.uint8)
    picture = Picture(shape=(height, width), step=step, mean_of=mean_of, bands=(2, 0, 1))
    base = tmp_path_factory.mktemp("p")
    one, other = (_picture(pixels, picture, tile, base / str(i)) for i, tile in enumerate(tiles))
    assert one.shape == (*picture.picture_hw, 3)
    assert np.array_equal(one, other)
    if mean_of == 1:  # every sample is there, and it is a pixel of its own step
        first = min(step // 2, (height - 1) % step), min(step // 2, (width - 1) % step)
        whole = pixels[:, first[0] :: step, first[1] :: step][[2, 0, 1]]
        assert whole.shape[1:] == picture.samples_hw
        assert np.array_equal(one, stretch_rgb(whole, (whole > 0).all(axis=0) & _others(pixels, first, step)))


def _others(pixels: np.ndarray[Any, Any], first: tuple[int, int], step: int) -> np.ndarray[Any, Any]:
    return np.asarray((pixels[:, first[0] :: step, first[1] :: step] > 0).all(axis=0))


def test_a_damaged_or_missing_part_leaves_a_blank_spot(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(1, 200, (1, 40, 40)).astype(np.uint16)
    picture = Picture(shape=(40, 40), step=1, mean_of=1, bands=(0,))
    _picture(pixels, picture, 20, tmp_path / "p")
    parts = sorted((tmp_path / "p" / "picture").iterdir())
    parts[0].write_bytes(b"PK\3\4 no archive")
    parts[3].unlink()
    whole = picture.assemble(tmp_path / "p")
    assert (whole[:20, :20] == 250).all()
    assert (whole[20:, 20:] == 250).all()
    assert whole[:20, 20:].std() > 20


@dataclass
class _FakeBand:
    name: str
    color: str = "undefined"


@pytest.mark.parametrize(
    ("names", "expected"),
    [(("B02", "B03", "B04", "B08"), (2, 1, 0)), (("a", "b"), (0,)), (("a", "b", "c", "d"), (0, 1, 2))],
)
def test_bands_of_the_picture(names: tuple[str, ...], expected: tuple[int, ...]) -> None:
    class _Box:
        shape = (5000, 3000)

    class _Scene:
        geobox = _Box()
        bands = tuple(_FakeBand(name) for name in names)

    picture = Picture.of(_Scene())  # type: ignore[arg-type]
    assert picture.bands == expected
    assert max(picture.picture_hw) <= 1024
