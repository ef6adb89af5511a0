"""Several hands, in any order and however often, leave the polygons that one process makes."""

from __future__ import annotations

import pickle
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import ResourceError
from pipeline.vector import Tolerance, blocks, polygonize, spool, tracer, write_polygons
from tests.properties.test_vector_law import CHECKERBOARD, COMB, LATTICE, NODATA, _rings, _spiral, masks
from tests.scenes import write_scene

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.vector.blocks import Piece

    Mask = NDArray[np.uint8]


def clumsy_hands(seed: int, at_once: int = 3) -> Callable[[Callable[[], Piece | None]], None]:
    """Hands that take several pieces, end them in any order, do some twice, and send everything as bytes."""
    rng = random.Random(seed)

    def do(piece: Piece) -> Any:
        function, arguments = pickle.loads(pickle.dumps((piece.function, piece.arguments)))
        return pickle.loads(pickle.dumps(function(*arguments)))

    def work(source: Callable[[], Piece | None]) -> None:
        taken: list[Piece] = []
        while True:
            while len(taken) < at_once and (piece := source()) is not None:
                taken.append(piece)
            if not taken:
                return
            piece = taken.pop(rng.randrange(len(taken)))
            for _ in range(rng.randint(0, 1)):
                do(piece)
            piece.done(do(piece))

    return work


def _batches(bands: NDArray[np.uint8], folder: Path, hands: Any, **options: Any) -> list[bytes]:
    """All that files are made of, in both orders."""
    path = write_scene(folder / "m.tif", bands, nodata=NODATA)
    with polygonize(path, scratch=folder, hands=hands, **options) as polygons:
        batches = [*polygons.iter_batches(), *polygons.iter_batches(along_curve=True)]
        return [pickle.dumps(batch.record(batch.polygons).to_pydict()) for batch in batches]


def _files(bands: NDArray[np.uint8], folder: Path, hands: Any, **options: Any) -> tuple[bytes, bytes]:
    """Files with the polygons in both orders."""
    path = write_scene(folder / "m.tif", bands, nodata=NODATA)
    with polygonize(path, scratch=folder, hands=hands, **options) as polygons:
        found = [write_polygons(polygons, folder / f"p.{kind}", overwrite=True).path for kind in ("parquet", "fgb")]
        return found[0].read_bytes(), found[1].read_bytes()


@given(masks(), st.integers(1, 7), st.integers(1, 5), st.integers(0, 99), st.booleans())
@example(CHECKERBOARD, 4, 3, 0, True)
@example(_spiral(25), 4, 2, 1, False)
@example(_rings(23), 3, 5, 2, True)
@example(np.full((13, 13), 1, np.uint8), 3, 2, 3, False)
@example(LATTICE, 4, 1, 4, False)
@example(COMB, 3, 2, 5, True)
@example(np.full((9, 9), NODATA, np.uint8), 3, 2, 6, False)
def test_several_hands_leave_the_same_bytes(mask: Mask, tile: int, block: int, seed: int, nodes: bool) -> None:  # noqa: FBT001
    options: dict[str, Any] = {"tile_px": tile, "simplify": Tolerance(1.0, "px") if nodes else None}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(tracer, "_FEW_TILES", 0),
        mock.patch.object(blocks, "_TILES", block),
    ):
        alone = _batches(mask[None], Path(folder), None, **options)
        assert _batches(mask[None], Path(folder), clumsy_hands(seed), **options) == alone


@pytest.mark.parametrize(
    "options",
    [
        {"sieve": True, "min_area_px": 9},
        {"fill_holes_px": 9, "connectivity": 8},
        {"min_area_px": 4, "include": frozenset({0, 2})},
        {"probabilities": True},
        {"bands_are_classes": True},
    ],
    ids=["sieve", "holes", "classes", "probabilities", "layers"],
)
def test_with_every_option_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    monkeypatch.setattr(blocks, "_TILES", 1)
    rng = np.random.default_rng(0)
    bands = np.kron(rng.integers(0, 3, (1, 10, 14), dtype=np.uint8), np.ones((1, 3, 3), np.uint8))
    bands[:, :17, :30] = 1  # whole tiles without a boundary
    if options.get("bands_are_classes"):  # regions of several classes that begin at the same pixel
        bands = np.concatenate([bands > 0, bands == 1] * 6)[:11, :18, :18].astype(np.uint8)
    if options.get("probabilities"):
        options = {
            "probabilities": write_scene(tmp_path / "p.tif", rng.integers(0, 250, (3, *bands.shape[1:]), np.uint8))
        }
        import rasterio

        with rasterio.open(options["probabilities"], "r+") as file:
            file.scales = (1 / 250,) * 3
    steps: list[tuple[int, int]] = []
    options = {**options, "tile_px": 8, "progress": lambda done, total: steps.append((done, total))}
    alone = _files(bands, tmp_path, None, **options)
    assert steps[-1][0] == steps[-1][1]
    assert {total for _, total in steps} == {len(steps)}
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    total = len(steps)
    assert _files(bands, tmp_path, clumsy_hands(7, at_once=4), **options) == alone
    assert steps[-1] == (total, total)
    assert sorted(steps[total:]) == steps[total:]


def test_noise_is_refused_as_soon_as_it_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "MOST_POLYGONS", 300)  # no block has so many
    noise = np.random.default_rng(0).integers(0, 2, (1, 64, 64), np.uint8)
    path = write_scene(tmp_path / "m.tif", noise, nodata=NODATA)
    with pytest.raises(ResourceError, match=r"RS-007.*more than 300 polygons"):
        polygonize(path, scratch=tmp_path / "scratch", tile_px=8, hands=clumsy_hands(0))
    assert not list((tmp_path / "scratch").iterdir())


def test_a_failed_piece_fails_the_whole(tmp_path: Path) -> None:
    mask = np.zeros((1, 64, 64), np.uint8)
    path = write_scene(tmp_path / "m.tif", mask, nodata=NODATA)

    def work(source: Callable[[], Piece | None]) -> None:
        del source
        raise ResourceError("no", code="RS-002", title="no", fix="no")

    with pytest.raises(ResourceError, match="RS-002"):
        polygonize(path, scratch=tmp_path / "scratch", tile_px=8, hands=work)
    assert not list((tmp_path / "scratch").iterdir())
