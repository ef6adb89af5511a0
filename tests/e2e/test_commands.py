"""The commands beside `segment`: what they print for people, and as one JSON document."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from pipeline.infer import calibration
from pipeline.model.probe import probe
from tests.commands import Cli, assert_block
from tests.scenes import save_threshold_model, save_unet, smooth_values, write_scene

SHAPE = (120, 150)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = smooth_values(2, SHAPE)
    data[:, :20, :30] = 0
    return write_scene(tmp_path_factory.mktemp("scene") / "scene.tif", data, nodata=0, names=("b0", "b1"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_threshold_model(folder)
    return folder


def _json(text: str) -> Any:
    """One document of strict JSON: `NaN` is none."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def _words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_inspect_tells_what_a_scene_is(cli: Cli, scene: Path) -> None:
    status, out, err = cli("inspect", scene)
    assert (status, err) == (0, "")
    told = _words(out)
    for fact in ("height 120", "width 150", "dtype uint16", "nodata 0", "EPSG:32633", "north-up", "valid frac 0.966"):
        assert fact in told
    assert "b0" in told
    assert "b1" in told


def test_inspect_gives_a_scene_as_json(cli: Cli, scene: Path) -> None:
    status, out, _ = cli("inspect", scene, "--json")
    facts = _json(out)
    assert status == 0
    assert (facts["height"], facts["width"], facts["nodata"]) == (*SHAPE, 0)
    assert [band["name"] for band in facts["bands"]] == ["b0", "b1"]
    assert facts["valid_frac"] == pytest.approx(1 - 20 * 30 / (120 * 150))
    assert facts["crs"]["authority"] == "EPSG:32633"
    west, north = np.min([p[0] for p in facts["footprint_lonlat"]]), np.max([p[1] for p in facts["footprint_lonlat"]])
    assert (west, north) == (pytest.approx(15.0, abs=1e-4), pytest.approx(45.1535, abs=1e-3))


def test_inspect_takes_what_a_scene_does_not_say(cli: Cli, tmp_path: Path) -> None:
    data = np.maximum(smooth_values(2, SHAPE), 8)
    data[:, :60] = 7
    path = write_scene(tmp_path / "bare.tif", data, crs=None)
    facts = _json(cli("inspect", path, "--nodata", "7", "--assume-crs", "EPSG:32633", "--json")[1])
    assert facts["valid_frac"] == pytest.approx(0.5)
    assert facts["crs"]["authority"] == "EPSG:32633"
    status, out, _ = cli("inspect", path)
    assert status == 0  # a look needs no CRS
    assert "EPSG:32633" not in out


def test_inspect_gives_nan_as_text(cli: Cli, tmp_path: Path) -> None:
    path = write_scene(tmp_path / "s.tif", np.full((1, 9, 9), np.nan, np.float32), nodata=np.nan)
    assert _json(cli("inspect", path, "--json")[1])["nodata"] == "nan"


def test_inspect_tells_what_a_model_is(cli: Cli, model: Path) -> None:
    status, out, err = cli("inspect", model)
    assert (status, err) == (0, "")
    told = _words(out)
    for fact in (
        "name threshold",
        "output stride px 2",
        "halo px 8",
        "tiling exact",
        "padding reflect",
        "multiples of 2",
    ):
        assert fact in told
    for name in ("b0", "b1", "low", "high"):
        assert name in told


def test_inspect_gives_a_model_as_json(cli: Cli, model: Path) -> None:
    facts = _json(cli("inspect", model, "--json")[1])
    assert (facts["output_stride_px"], facts["halo_px"], facts["tiling"]) == (2, 8, "exact")
    assert [c["name"] for c in facts["classes"]] == ["low", "high"]
    assert facts["bands"][0] == {"band": "b0", "scale": 1.0, "offset": 0.0, "mean": 500.0, "std": 100.0}
    assert _json(cli("inspect", model / "model.json", "--json")[1]) == facts
    bare = _json(cli("inspect", model / "weights.safetensors", "--json")[1])
    assert (bare["halo_px"], bare["parameters"]) == (8, facts["parameters"])
    assert [c["name"] for c in bare["classes"]] == ["class 0", "class 1"]


def test_inspect_says_why_a_model_is_blended(cli: Cli, tmp_path: Path) -> None:
    save_unet(tmp_path, depth=2, norm="instance")
    facts = _json(cli("inspect", tmp_path, "--json")[1])
    assert (facts["tiling"], facts["halo_px"]) == ("blend", None)
    assert facts["reason"] in _words(cli("inspect", tmp_path)[1])


def test_inspect_writes_what_it_measured_and_nobody_measures_it_again(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[int] = []

    def counting(*args: Any, **options: Any) -> Any:
        probed.append(1)
        return probe(*args, **options)

    monkeypatch.setattr("pipeline.model.model.probe", counting)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    folder = tmp_path / "model"
    save_unet(folder, depth=1)
    card = folder / "model.json"
    bare = card.read_text()
    measured = _json(cli("inspect", folder, "--json")[1])
    assert card.read_text() == bare, "a look changes nothing"
    status, out, err = cli("inspect", folder, "--write", "--json")
    assert (status, err) == (0, "")
    assert _json(out) == measured

    written = _json(card.read_text())["properties"]["scenemask:traits"]
    assert (written["stride"], written["halo_px"], written["tiling"]) == (2, measured["halo_px"], "exact")
    assert written["evidence"]
    assert written["evidence"] == measured["evidence"]

    # Somebody else's cache is empty: what stands in the card must do.
    probed.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    assert _json(cli("inspect", folder, "--json")[1]) == measured
    assert probed == []
    card.write_text(bare)
    assert _json(cli("inspect", folder, "--json")[1])["halo_px"] == measured["halo_px"]
    assert probed == [1]


def test_inspect_of_neither(cli: Cli, tmp_path: Path) -> None:
    status, _, err = cli("inspect", tmp_path / "none.tif")
    assert status == 3
    assert_block(err, "IN-001")
    status, _, err = cli("inspect", tmp_path)
    assert status == 3
    assert_block(err, "IN-054")


@pytest.fixture(scope="module")
def worth_measuring(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A scene that is large enough for a forward to be measured, and a network of some work."""
    folder = tmp_path_factory.mktemp("large")
    save_unet(folder / "model", depth=2)
    data = np.tile(smooth_values(2, (60, 60)), (1, 20, 75))
    return write_scene(folder / "s.tif", data, names=("b0", "b1")), folder / "model"


MEASURED = ("--backend", "torch", "--precision", "float32", "--memory", "2GB")


@pytest.fixture
def _short_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two patches are measured, not three, and kept although other tests run beside this one."""
    monkeypatch.setattr(calibration, "_LARGER_PX", ())
    monkeypatch.setattr(calibration, "_MOST_WAITING", 1e9)


@pytest.mark.usefixtures("_short_calibration")
def test_plan_predicts_seconds_and_memory(cli: Cli, worth_measuring: tuple[Path, Path]) -> None:
    scene, model = worth_measuring
    arguments = ("plan", scene, "-m", model, *MEASURED)
    status, out, err = cli(*arguments, "--json")
    assert (status, err) == (0, "")
    plan = _json(out)
    assert 0 < plan["forward_s"] < 600
    assert 1e8 < plan["peak_memory_bytes"] < 2.3e9
    assert plan["patches"] >= plan["tiles"] >= 1

    status, out, err = cli(*arguments)
    assert (status, err) == (0, "")
    told = _words(out)
    seconds, memory = (re.search(text, told) for text in (r"forward s ([\d.]+)", r"peak memory ([\d.]+) GB per worker"))
    assert seconds is not None
    assert memory is not None
    assert 0 < float(seconds[1]) < 600
    assert 0.1 < float(memory[1]) < 2.3


@pytest.mark.usefixtures("_short_calibration")
def test_a_run_keeps_its_prediction_beside_what_it_took(
    cli: Cli, worth_measuring: tuple[Path, Path], tmp_path: Path
) -> None:
    """Bounds are wide: others use this machine, and the peak is that of all tests of this process."""
    scene, model = worth_measuring
    status, _, err = cli("segment", scene, "-m", model, "-o", tmp_path, "--vectors", "none", *MEASURED)
    assert status == 0, err
    told = _json((tmp_path / "run.json").read_text())
    predicted_s, took_s = told["plan"]["forward_s"], told["timings_s"]["infer"]
    assert 0 < predicted_s < 600
    assert 1 / 50 < took_s / predicted_s < 50
    predicted, peak = told["plan"]["peak_memory_bytes"], told["peak_memory_bytes"]
    assert 1e8 < predicted < 1e11
    assert 1e8 < peak < 1e11
    assert peak > predicted / 20


def test_doctor_tells_what_a_question_needs(cli: Cli) -> None:
    status, out, err = cli("doctor")
    assert (status, err) == (0, "")
    for name in ("platform", "memory gb", "free disk gb", "gdal rasters", "jpeg2000", "cuda", "cache", "executable"):
        assert re.search(rf"^{name} +\S", out, re.MULTILINE), name
    for package in ("scenemask", "python", "torch", "rasterio", "zarr"):
        assert re.search(rf"^  {package}: \d", out, re.MULTILINE), package
    assert max(map(len, out.splitlines())) < 200


def test_doctor_as_json(cli: Cli) -> None:
    import torch

    status, out, _ = cli("doctor", "--json")
    facts = _json(out)
    assert status == 0
    assert facts["versions"]["torch"] == torch.__version__
    assert rasterio.__gdal_version__ in facts["gdal_rasters"]
    assert facts["memory_gb"] > 0


def test_segment_tells_its_progress_without_a_terminal(cli: Cli, scene: Path, model: Path, tmp_path: Path) -> None:
    status, out, err = cli("segment", scene, "-m", model, "-o", tmp_path, "-v", "--tile", "1", "--patch", "64")
    assert status == 0, err
    lines = err.splitlines()
    begin = next(i for i, line in enumerate(lines) if re.fullmatch(r"segmenting \(\d+ steps\), warming up", line))
    assert re.fullmatch(r"  1/\d+  [\d.]+ tiles/s [\d.]+ Mpx/s  eta \d+ s", lines[begin + 1])
    for stage in ("writing the mask", "tracing polygons", "writing the rest"):
        after = lines[lines.index(stage) + 1 :]
        said = next(line for line in after if not re.fullmatch(r"  \d+/\d+  [\d.]+/s  eta \d+ s", line))
        assert re.fullmatch(r"  done in [\d.]+ s", said)
    assert "\r" not in err
    assert "\x1b" not in out + err
    assert "low" in out
    assert cli("segment", scene, "-m", model, "-o", tmp_path, "-q") == (0, "", "")


def test_b3_a_full_log_disk_never_ends_a_run(scene: Path, model: Path, tmp_path: Path) -> None:
    start = "import sys; from pipeline.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "segment", scene, "-m", model, "-o", tmp_path, "--vectors", "none"]
    with Path("/dev/full").open("w") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, check=False)
    assert done.returncode == 0
    assert (tmp_path / "run.json").exists()


def test_demo_from_nothing_to_scores(cli: Cli, tmp_path: Path) -> None:
    """A few steps teach nothing; what is checked is that all of it is there and fits together."""
    status, out, err = cli("demo", "-o", tmp_path / "demo", "--size", "512", "--steps", "2", "--json")
    assert status == 0, err
    told = _json(out)
    assert set(told["timings_s"]) >= {"scene", "train", "infer", "mask", "polygons", "score"}
    assert len(told["iou_unseen"]) == len(told["run"]["classes"]) == 5
    assert all(score is None or 0 <= score <= 1 for score in told["iou_unseen"])
    result = Path(told["out"])
    with rasterio.open(result / "mask.tif") as mask:
        assert mask.shape == (512, 512)
    for name in ("polygons.geojson", "preview.png", "run.json"):
        assert (result / name).stat().st_size
    facts = _json(cli("inspect", tmp_path / "demo" / "model", "--json")[1])
    assert facts["tiling"] == "exact"
