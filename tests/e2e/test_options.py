"""Options at work: what is said, how the scene goes on beyond its rim, tiles in flight, threads, other formats."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

import pipeline as sm
from pipeline.cli.app import main
from pipeline.model import UNet, save_model
from pipeline.run.cluster import connect
from pipeline.run.events import Event, StageAdvanced
from pipeline.run.settings import make_settings
from pipeline.run.workers import tiles_in_flight
from tests.networks import unet_model
from tests.scenes import NORTH_UP, UTM, save_unet, smooth_values, write_scene

SHAPE = (120, 152)
OPTIONS: dict[str, Any] = {"patch": 64, "tile": 1, "vectors": "none"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> sm.Model:
    return save_unet(tmp_path_factory.mktemp("models") / "m", depth=2)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "scene.tif", smooth_values(2, SHAPE), names=("b0", "b1"))


def _said(
    arguments: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    monkeypatch.setattr(sys, "argv", ["scenemask", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    out, err = capsys.readouterr()
    return out, err


def test_quiet_says_nothing_and_verbose_tells_every_tile(
    scene: Path, model: sm.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["segment", scene, "-m", tmp_path / "m", "--patch", "64", "--tile", "1", "--vectors", "none"]
    save_unet(tmp_path / "m", depth=2)
    quiet = _said([*command, "-o", tmp_path / "q", "-q"], monkeypatch, capsys)
    plain = _said([*command, "-o", tmp_path / "p"], monkeypatch, capsys)
    verbose = _said([*command, "-o", tmp_path / "v", "-v"], monkeypatch, capsys)
    assert quiet == ("", "")
    assert "mask.tif" in plain[0]
    assert "segmenting" in plain[1]
    assert plain[1].count("Mpx/s") < verbose[1].count("Mpx/s")
    assert verbose[1].count("Mpx/s") >= 10


@pytest.mark.parametrize(("padding", "mode"), [("reflect", "reflect"), ("edge", "edge"), ("zero", "constant")])
def test_padding_equals_one_forward_of_the_scene_extended_by_numpy(
    scene: Path, model: sm.Model, tmp_path: Path, padding: str, mode: str
) -> None:
    """`zero` is the scaled zero: the mean of the training data, as for missing pixels."""
    result = sm.segment(scene, model, tmp_path / "out", padding=padding, **OPTIONS)
    halo = model.traits.halo_px
    assert halo is not None
    scaled = (smooth_values(2, SHAPE).astype(np.float32) - 500) / 250
    sides = [(halo, halo + -side % model.traits.stride) for side in SHAPE]
    extended = np.pad(scaled, ((0, 0), *sides), mode=mode)  # type: ignore[call-overload]
    with torch.inference_mode():
        logits = model.network(torch.from_numpy(extended)[None])[0].numpy()
    logits = logits[:, halo : halo + SHAPE[0], halo : halo + SHAPE[1]]
    top = np.sort(logits, axis=0)
    tie = top[-1] - top[-2] < 2e-5
    with rasterio.open(result.mask_path) as mask:
        assert ((mask.read(1) == logits.argmax(axis=0)) | tie).all()


def test_paddings_differ_at_the_rim(scene: Path, model: sm.Model, tmp_path: Path) -> None:
    """Else the comparison with NumPy would prove nothing."""
    masks = []
    for padding in ("reflect", "edge", "zero"):
        result = sm.segment(scene, model, tmp_path / padding, padding=padding, **OPTIONS)
        with rasterio.open(result.mask_path) as mask:
            masks.append(mask.read(1).tobytes())
    assert len(set(masks)) == 3


def test_tiles_in_flight_are_bounded(
    scene: Path, model: sm.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan of a million tiles needs no graph of a million tasks."""
    submitted = done = most = 0

    connecting = connect

    def counting(settings: Any, **options: Any) -> Any:
        return _Counting(connecting(settings, **options), count)

    def listen(event: Event) -> None:
        nonlocal done
        done += isinstance(event, StageAdvanced) and event.name == "infer"

    def count() -> None:
        nonlocal submitted, most
        submitted += 1
        most = max(most, submitted - done)

    monkeypatch.setattr("pipeline.run.segment.connect", counting)
    result = sm.segment(scene, model, tmp_path / "out", listener=listen, **OPTIONS)
    in_flight = tiles_in_flight(make_settings({}), "cpu")
    assert submitted == result.summary["tiles"]["total"] > 4 * in_flight
    assert in_flight <= most <= 2 * in_flight


class _Counting:
    """A connection whose client counts what is submitted."""

    def __init__(self, inner: Any, count: Any) -> None:
        self._inner, self._count = inner, count

    def __enter__(self) -> Any:
        connection = self._inner.__enter__()
        submit = connection.client.submit

        def counted(*args: Any, **options: Any) -> Any:
            self._count()
            return submit(*args, **options)

        connection.client.submit = counted
        return connection

    def __exit__(self, *problem: object) -> Any:
        return self._inner.__exit__(*problem)


def _threads_of_a_forward(threads: int) -> int:
    from pipeline.infer import device_thread

    return int(device_thread(threads=threads).run(torch.get_num_threads))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_forward_has_the_threads_of_the_plan_in_every_process(workers: int) -> None:
    """Dask's worker processes begin with OMP_NUM_THREADS=1."""
    with connect(make_settings({"workers": workers})) as connection:
        told = connection.client.run(_threads_of_a_forward, 2)
    assert list(told.values()) == [2] * workers


def test_jpeg_2000_gives_the_mask_of_the_same_pixels_in_a_tiff(scene: Path, model: sm.Model, tmp_path: Path) -> None:
    data = smooth_values(2, SHAPE)
    profile = {"driver": "JP2OpenJPEG", "count": 2, "height": SHAPE[0], "width": SHAPE[1], "dtype": "uint16"}
    path = tmp_path / "scene.jp2"
    with rasterio.open(
        path, "w", **profile, crs=UTM, transform=NORTH_UP, QUALITY="100", REVERSIBLE="YES", YCBCR420="NO"
    ) as file:
        file.write(data)
    with rasterio.open(path) as file:
        assert (file.read() == data).all()
    one = sm.segment(scene, model, tmp_path / "tif", **OPTIONS)
    two = sm.segment(path, model, tmp_path / "jp2", **OPTIONS)
    with rasterio.open(one.mask_path) as a, rasterio.open(two.mask_path) as b:
        assert (a.read(1) == b.read(1)).all()
        assert (a.crs, a.transform) == (b.crs, b.transform)


def test_a_tolerated_halo_is_told_in_run_json_and_kept_to(scene: Path, tmp_path: Path) -> None:
    made = unet_model(depth=2)
    assert isinstance(made.network, UNet)
    with torch.no_grad():  # as in many a trained network, what is far off hardly counts
        made.network.up[0].weight.mul_(1e-4)  # type: ignore[operator, union-attr]
    faint = save_model(tmp_path / "faint", made.network, made.spec)
    written: dict[str, Any] = {}
    for name, more in (("whole", {}), ("tolerated", {"halo_tolerance": 1e-3})):
        sm.segment(scene, faint, tmp_path / name, probabilities=True, **{**OPTIONS, "tile": 256, **more})
        with rasterio.open(tmp_path / name / "probabilities.tif") as file:
            written[name] = file.read().astype(int), file.scales[0]
    record = json.loads((tmp_path / "tolerated" / "run.json").read_text())
    halo = record["plan"]["halo_px"]
    assert 0 < halo < (faint.traits.halo_px or 0)
    assert record["settings"]["halo_tolerance"] == 1e-3
    own, _, told = record["plan"]["reason"].partition("; ")
    assert own == faint.traits.reason
    found = re.fullmatch(rf"{halo} px of them change probabilities by at most (\S+) in sampled windows", told)
    assert found
    assert 0 < float(found[1]) <= 1e-3
    (p, scale), (q, _) = written["whole"], written["tolerated"]
    assert (np.abs(p - q) * scale).max() <= 1e-3 + scale  # what is written is rounded
