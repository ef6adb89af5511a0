"""Each fault through the command line: its exit code, a sentence that says what to do, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.control import GroundControlPoint

from tests.commands import Cli, assert_block
from tests.scenes import save_threshold_model, save_unet, smooth_values, write_scene

SHAPE = (64, 80)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("m")
    save_threshold_model(folder)
    return folder


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "scene.tif", smooth_values(2, SHAPE), names=("b0", "b1"))


def _gcps(path: Path) -> Path:
    import rasterio

    points = [GroundControlPoint(row=r, col=c, x=10 + c, y=50 - r) for r, c in ((0, 0), (0, 80), (64, 0), (64, 80))]
    with rasterio.open(
        path, "w", driver="GTiff", height=64, width=80, count=2, dtype="uint16", gcps=points, crs="EPSG:4326"
    ) as file:
        file.write(smooth_values(2, SHAPE))
    return path


def _truncated(path: Path) -> Path:
    write_scene(path, smooth_values(2, (300, 300)), tiled=True, blockxsize=128, blockysize=128)
    path.write_bytes(path.read_bytes()[:-5000])
    return path


def _palette(path: Path) -> Path:
    import rasterio

    write_scene(path, smooth_values(1, SHAPE).astype(np.uint8), photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (0, 0, 0, 255), 1: (255, 0, 0, 255)})
    return path


def _bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


SCENES: dict[str, Any] = {
    "c1-missing": (lambda p: p, "IN-001"),
    "c1-zero-bytes": (lambda p: _bytes(p, b""), "IN-003"),
    "c1-not-a-raster": (lambda p: _bytes(p, b"hello, this is text"), "IN-002"),
    "c1-html": (lambda p: _bytes(p, b"<!DOCTYPE html><html><body>404</body></html>"), "IN-002"),
    "c2-truncated": (_truncated, "IN-004"),
    "c5-no-crs": (lambda p: write_scene(p, smooth_values(2, SHAPE), crs=None), "IN-006"),
    "c6-gcps": (_gcps, "IN-007"),
    "c28-complex": (lambda p: write_scene(p, smooth_values(2, SHAPE).astype(np.complex64)), "IN-009"),
    "c29-palette": (_palette, "IN-010"),
    "c30-band-count": (lambda p: write_scene(p, smooth_values(3, SHAPE)), "IN-012"),
    "c30-band-names": (lambda p: write_scene(p, smooth_values(3, SHAPE), names=("x", "y", "z")), "IN-012"),
}


@pytest.mark.parametrize("fault", SCENES)
def test_bad_scenes_exit_3(cli: Cli, model: Path, tmp_path: Path, fault: str) -> None:
    make, code = SCENES[fault]
    path = make(tmp_path / "bad.tif")
    status, _, err = cli("segment", path, "-m", model, "-o", tmp_path / "out")
    assert status == 3, err
    assert_block(err, code)
    assert "bad" in err.split("  where  ")[1]
    assert not (tmp_path / "out" / "mask.tif").exists()


def test_b5_output_folder_that_cannot_be_written(cli: Cli, scene: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    status, _, err = cli("segment", scene, "-m", model, "-o", tmp_path / "file" / "out")
    assert status == 2
    assert_block(err, "CF-002")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--overlap", "64", "--patch", "64"], "CF-005", "smaller than patch"),
        (["--overlap", "0.5"], "CF-005", "overlap"),
        (["--overlap", "12.5 %"], "CF-005", "64 px"),
        (["--min-area", "500 ft2"], "CF-005", "m2"),
        (["--min-area", "-1"], "CF-005", "min_area"),
        (["--vectors", "shp"], "CF-005", "geojson"),
        (["--tiling", "exakt"], "CF-005", "exact"),
        (["--workers", "0"], "CF-005", "workers"),
        (["--memory", "lots"], "CF-005", "8GB"),
        (["--device", "cuda"], "CF-020", "CUDA"),
        (["--no-such-option"], "CF-007", "no-such-option"),
        (["--patch", "1"], "CF-006", "halo"),
        (["--tiling", "exact", "--overlap", "8"], "CF-005", "overlap"),
        (["--assume-crs", "EPSG:4326", "--allow-no-crs"], "CF-005", "exclude"),
        (["--cluster", "slurmy"], "CF-005", "cluster"),
    ],
)
def test_f5_f6_bad_options_exit_2(
    cli: Cli, scene: Path, model: Path, tmp_path: Path, arguments: list[str], code: str, told: str
) -> None:
    if "--device" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    status, _, err = cli("segment", scene, "-m", model, "-o", tmp_path / "out", *arguments)
    assert status == 2, err
    assert_block(err, code)
    assert told in err
    assert not (tmp_path / "out" / "mask.tif").exists()


def test_f6_all_problems_are_listed_at_once(cli: Cli, scene: Path, model: Path, tmp_path: Path) -> None:
    wrong = ["--workers", "0", "--tile", "0", "--taper", "x"]
    _, _, err = cli("segment", scene, "-m", model, "-o", tmp_path / "o", *wrong)
    for name in ("workers", "tile", "taper"):
        assert name in err
    wrong = ["--workers", "0", "--overlap", "64", "--patch", "64"]
    _, _, err = cli("segment", scene, "-m", model, "-o", tmp_path / "o", *wrong)
    assert "workers: " in err
    assert "smaller than patch" in err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("overlp: 64", "did you mean 'overlap'"),
        ("min-aera: 5", "did you mean 'min_area'"),
        ("overwrite: true", "'overwrite' is no setting: give --overwrite on the command line"),
        ("json: true\nv: 1\ntlie: 5", "give --json on the command line; 'v' is no setting: give -v"),
        ("patch: 64\npatch: 128", "given twice"),
        ("patch: [64", "line 1"),
        ("a:\n\tb: 1", "line 2"),
        ("- just\n- a list", "expected keys"),
        ("taper: no", "taper"),
        ("keep: 'maybe'", "keep"),
        ("x: !!python/object/apply:os.system ['true']", "python/object"),
    ],
)
def test_f1_f2_f3_f4_bad_settings_files(
    cli: Cli, scene: Path, model: Path, tmp_path: Path, text: str, told: str
) -> None:
    (tmp_path / "s.yaml").write_text(text)
    status, _, err = cli("segment", scene, "-m", model, "-o", tmp_path / "out", "--config", tmp_path / "s.yaml")
    assert status == 2, err
    assert told in err
    assert "s.yaml" in err


@pytest.mark.parametrize("flag", ["--overwrite", "--json", "-v", "-q", "--debug"])
def test_flags_that_a_file_cannot_hold_are_flags(cli: Cli, flag: str) -> None:
    assert flag in cli("segment", "--help")[1]


def test_without_arguments_the_help_is_printed_plainly(cli: Cli) -> None:
    status, out, err = cli()
    assert (status, out) == (2, "")
    assert err.startswith("Usage: ")
    assert "segment" in err
    assert "ERROR" not in err
    assert cli("--help")[:2] == (0, err)


def test_a_flag_beats_the_file(cli: Cli, scene: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("patch: 32 px\nvectors: none\n")
    arguments = ["plan", scene, "-m", model, "--config", tmp_path / "s.yaml", "--json"]
    assert json.loads(cli(*arguments)[1])["patch_px"] == [32, 32]
    assert json.loads(cli(*arguments, "--patch", "48")[1])["patch_px"] == [48, 48]


MODELS: dict[str, Any] = {
    "d1-missing": (lambda p: p / "none.safetensors", "MD-001"),
    "d1-empty-folder": (lambda p: p, "MD-001"),
    "d1-truncated": (lambda p: _bytes(p / "w.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{"), "MD-001"),
    "d2-pickled": (lambda p: (torch.save(torch.nn.Conv2d(1, 1, 1), p / "m.pt"), p / "m.pt")[1], "MD-002"),
    "d4-other-network": (lambda p: (torch.save({"a": torch.zeros(1)}, p / "m.pt"), p / "m.pt")[1], "MD-004"),
}


@pytest.mark.parametrize("fault", MODELS)
def test_bad_models_exit_4(cli: Cli, scene: Path, tmp_path: Path, fault: str) -> None:
    make, code = MODELS[fault]
    (tmp_path / "model").mkdir()
    status, _, err = cli("segment", scene, "-m", make(tmp_path / "model"), "-o", tmp_path / "out")
    assert status == 4, err
    assert_block(err, code)


def test_d3_class_names_of_another_number(cli: Cli, scene: Path, model: Path, tmp_path: Path) -> None:
    weights = model / "weights.safetensors"
    status, _, err = cli("segment", scene, "-m", weights, "-o", tmp_path / "out", "--class-names", "a,b,c")
    assert status == 4
    assert_block(err, "MD-003")


def test_d6_a_network_that_yields_nan_fails_and_names_the_place(cli: Cli, tmp_path: Path) -> None:
    data = smooth_values(2, SHAPE).astype(np.float32)
    data[:, 40:, 50:] = 3e38  # finite in the file, infinite after scaling
    path = write_scene(tmp_path / "s.tif", data, names=("b0", "b1"))
    save_unet(tmp_path / "m", depth=2)
    weights = tmp_path / "m" / "weights.safetensors"
    status, _, err = cli("segment", path, "-m", weights, "-o", tmp_path / "out", "--std", "0.001")
    assert status == 4, err
    assert_block(err, "MD-006")
    assert "row " in err
    assert not (tmp_path / "out" / "mask.tif").exists()


def test_errors_as_json(cli: Cli, model: Path, tmp_path: Path) -> None:
    status, out, _ = cli("segment", tmp_path / "none.tif", "-m", model, "-o", tmp_path / "out", "--json")
    assert status == 3
    assert json.loads(out)["error"]["code"] == "IN-001"


def test_c15_c16_a_nodata_value_given_by_hand(cli: Cli, model: Path, tmp_path: Path) -> None:
    data = smooth_values(2, SHAPE)
    data[:, :20] = 7
    path = write_scene(tmp_path / "s.tif", data, names=("b0", "b1"))
    status, _, err = cli("segment", path, "-m", model, "-o", tmp_path / "a", "--vectors", "none")
    assert status == 0
    assert "--nodata 7" in err
    status, out, _ = cli("segment", path, "-m", model, "-o", tmp_path / "b", "--nodata", "7", "--json")
    assert json.loads(out)["valid_px"] == 44 * 80


def test_cl_001_a_scheduler_that_is_not_there(cli: Cli, scene: Path, model: Path, tmp_path: Path) -> None:
    status, _, err = cli("segment", scene, "-m", model, "-o", tmp_path / "o", "--cluster", "tcp://127.0.0.1:9")
    assert status == 8
    assert_block(err, "CL-001")


@pytest.mark.parametrize("workers", [1, 2])
def test_c3_a_block_that_cannot_be_decoded_names_its_window(
    cli: Cli, model: Path, tmp_path: Path, workers: int
) -> None:
    """The file opens, and its damage is met by a worker, hours into a run if need be."""
    layout = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate", "nodata": 0}
    path = write_scene(tmp_path / "s.tif", smooth_values(2, (512, 640)), names=("b0", "b1"), **layout)
    with rasterio.open(path) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_2_1", "TIFF", bidx=1))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(200))
    options = ["--patch", "128", "--tile", "128", "--vectors", "none", "--workers", str(workers)]
    status, _, err = cli("segment", path, "-m", model, "-o", tmp_path / "out", *options)
    assert status == 3, err
    assert_block(err, "IN-005")
    where = err.split("  where  ")[1].splitlines()[0]
    assert "s.tif, row" in where
    assert "tile " in where
    assert not (tmp_path / "out" / "mask.tif").exists()


@pytest.mark.parametrize("way", ["mask.tif", "link.tif", "linked/probabilities.tif", ".scenemask/store/s.tif"])
def test_b12_a_run_does_not_replace_what_it_reads(
    cli: Cli, scene: Path, model: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (out / ".scenemask" / "store").mkdir(parents=True)
    target = out / ("mask.tif" if way == "link.tif" else way.removeprefix("linked/"))
    content = scene.read_bytes()
    target.write_bytes(content)
    (tmp_path / "linked").symlink_to(out)
    (tmp_path / "link.tif").symlink_to(target)
    monkeypatch.chdir(tmp_path)
    given = way if way.startswith("link") else f"out/{way}"
    status, _, err = cli("segment", given, "-m", model, "-o", "out", "--overwrite", "--vectors", "none")
    assert status == 2, err
    assert_block(err, "CF-008")
    assert target.read_bytes() == content


def test_b12_nor_its_area_of_interest(cli: Cli, scene: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    aoi = tmp_path / "out" / "polygons.geojson"
    aoi.write_text("{}")
    status, _, err = cli("segment", scene, "-m", model, "-o", tmp_path / "out", "--overwrite", "--aoi", aoi)
    assert status == 2
    assert_block(err, "CF-008")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("size_kb", [40, 300, 1000, 1300, 2000])
@pytest.mark.parametrize("foreseen", [True, False])
def test_b1_b2_disk_full(
    cli: Cli, model: Path, tmp_path: Path, size_kb: int, monkeypatch: pytest.MonkeyPatch, *, foreseen: bool
) -> None:
    if not foreseen:  # something else fills the disk while the run is on its way
        monkeypatch.setattr("pipeline.run.scratch.require_free_space", lambda *_: None)
    path = write_scene(tmp_path / "s.tif", np.random.default_rng(0).integers(1, 1000, (2, 700, 700)).astype("u2"))
    out = tmp_path / "out"
    out.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(out)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this container may not mount a tmpfs")
    try:
        status, _, err = cli("segment", path, "-m", model, "-o", out / "o")
        assert status == 7, err
        assert_block(err, "RS-00")
        assert not list(out.glob("o/mask.tif"))
        assert not list(out.glob("o/run.json"))
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


def test_closed_stdout_is_no_error(model: Path, scene: Path, tmp_path: Path) -> None:
    """B22: `scenemask ... | true`."""
    code = "from pipeline.cli import main; main()"
    command = f"{sys.executable} -c '{code}' inspect {scene} | true"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in run.stderr
