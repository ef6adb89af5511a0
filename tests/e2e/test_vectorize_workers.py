"""Worker processes trace: the same file as from one process, also after one of them was killed."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import pipeline as sm
from pipeline.errors import InputError
from pipeline.run.settings import make_settings
from pipeline.run.tracers import local_hands
from pipeline.vector import blocks, polygonize, tracer, write_polygons
from tests.commands import Cli
from tests.scenes import save_threshold_model, smooth_values, write_scene
from tests.unit.vector.masks import NODATA, blobs, write_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pipeline.vector import Hands, Piece


@pytest.fixture(scope="module")
def two() -> Iterator[Hands]:
    """Two processes."""
    with local_hands(make_settings({"workers": 2})) as hands:
        assert hands is not None
        yield hands


def _die_once(mark: Path, function: Callable[..., Any], *arguments: object) -> Any:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments)


def _bytes(mask: Path, folder: Path, hands: Hands | None, **options: Any) -> bytes:
    with polygonize(mask, scratch=folder, hands=hands, tile_px=64, **options) as polygons:
        return write_polygons(polygons, folder / "p.parquet", overwrite=True).path.read_bytes()


@pytest.mark.parametrize(
    "kind",
    ["trace_block", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("label_block", "join_parts"))],
)
def test_a_killed_worker_s_piece_is_done_again(tmp_path: Path, two: Hands, kind: str) -> None:
    mask = write_mask(tmp_path / "m.tif", blobs(400, sigma=6.0))
    alone = _bytes(mask, tmp_path, None, sieve=True, min_area_px=9)
    mark = tmp_path / "died"

    def dying(source: Callable[[], Piece | None]) -> None:
        def next_piece() -> Piece | None:
            piece = source()
            if piece is None or piece.function.__name__ != kind:
                return piece
            return piece._replace(function=_die_once, arguments=(mark, piece.function, *piece.arguments))

        two(next_piece)

    assert _bytes(mask, tmp_path, dying, sieve=True, min_area_px=9) == alone
    assert mark.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"m.tif", "p.parquet", "died"}


def test_what_a_worker_finds_wrong_is_said(tmp_path: Path, two: Hands) -> None:
    mask = write_mask(tmp_path / "m.tif", blobs(400), tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    data = bytearray(mask.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    mask.write_bytes(data)
    with pytest.raises(InputError, match=r"IN-031.*cannot be read"):
        _bytes(mask, tmp_path, two)


@pytest.mark.slow
def test_the_command_line_takes_workers(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.kron(blobs(50, sigma=2.0), np.ones((64, 64), np.uint8))
    assert mask.size > tracer._FEW_TILES * 1024**2
    path = write_mask(tmp_path / "m.tif", mask, compress="deflate")
    traced = _counted(monkeypatch)
    for workers in (1, 2):
        status, _, err = cli("vectorize", path, "-o", tmp_path / str(workers) / "p.fgb", "--workers", workers)
        assert status == 0, err
        assert len(traced) == workers - 1
    assert (tmp_path / "1" / "p.fgb").read_bytes() == (tmp_path / "2" / "p.fgb").read_bytes()


def test_segment_traces_on_its_own_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = smooth_values(2, (120, 150))
    scene = write_scene(tmp_path / "scene.tif", data, nodata=NODATA, names=("b0", "b1"))
    model = save_threshold_model(tmp_path / "model")
    options: dict[str, Any] = {"vectors": "fgb", "patch": 64, "tile": 64}
    sm.segment(scene, model, tmp_path / "one", **options)
    monkeypatch.setattr(tracer, "_FEW_TILES", 0)
    traced = _counted(monkeypatch)
    sm.segment(scene, model, tmp_path / "two", workers=2, **options)
    assert len(traced) == 1
    one, other = ((tmp_path / name / "polygons.fgb").read_bytes() for name in ("one", "two"))
    assert one == other


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Tracings by several hands, as they come."""
    found: list[object] = []

    def trace(*arguments: Any, **options: Any) -> int:
        found.append(arguments)
        return blocks.trace_in_blocks(*arguments, **options)

    monkeypatch.setattr(tracer, "trace_in_blocks", trace)
    return found
