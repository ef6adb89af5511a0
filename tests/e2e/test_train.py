"""`scenemask train` and `export` as a user runs them: to the end, cut off, again, and on what cannot be learnt."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from PIL import Image
from stac_model.schema import MLModelProperties

import pipeline as sm
from pipeline.train import make_train_settings, train_model
from tests.commands import Cli, assert_block
from tests.labelled import SIZE, blobs, document, write_labelled
from tests.scenes import write_scene


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    write_labelled(folder)
    return folder


def _config(folder: Path, place: Path, **changes: Any) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.yaml").write_text(yaml.safe_dump(document(folder / "scene.tif", folder / "labels.tif", **changes)))
    return place / "config.yaml"


def _losses(path: Path) -> list[float]:
    with path.open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_train_segment_and_train_again(cli: Cli, folder: Path, tmp_path: Path) -> None:
    config = _config(folder, tmp_path)
    command = ("train", config, "-o", tmp_path / "model", "schedule.steps=60", "schedule.check_every=20", "--json")
    status, out, err = cli(*command)
    assert status == 0, err
    told = json.loads(out)
    assert told["accuracy"]["test"]["mean_iou"] > 0.8
    assert told["steps"] == 60
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files == {
        "model.json", "weights.safetensors", "config.yaml", "training.csv", "training.png", "example.png",
    }  # fmt: skip
    assert len(_losses(tmp_path / "model" / "training.csv")) == 60
    for name in ("training.png", "example.png"):
        Image.open(tmp_path / "model" / name).verify()

    status, _, err = cli("segment", folder / "scene.tif", "-m", tmp_path / "model", "-o", tmp_path / "out", "-q")
    assert status == 0, err
    with rasterio.open(tmp_path / "out" / "mask.tif") as file:
        assert (file.read(1) == blobs()).mean() > 0.9

    written = (tmp_path / "model" / "model.json").stat().st_mtime_ns
    assert json.loads(cli(*command)[1])["steps"] == 60
    assert (tmp_path / "model" / "model.json").stat().st_mtime_ns == written
    status, _, err = cli("train", config, "-o", tmp_path / "model", "seed=5")
    assert status == 5
    assert_block(err, "OU-041")


def test_the_card_is_a_stac_item_that_the_extensions_own_authors_accept(folder: Path, tmp_path: Path) -> None:
    import pystac

    settings = make_train_settings(
        document(folder / "scene.tif", folder / "labels.tif", licence="CC-BY-4.0", provenance="a test", description="d")
    )
    train_model(settings, tmp_path / "m")
    card = json.loads((tmp_path / "m" / "model.json").read_text())
    properties = card["properties"]
    pystac.Item.from_dict(card)
    known = json.loads(json.dumps({k: v for k, v in properties.items() if k.startswith("mlm:")}))
    for row in known["mlm:output"][0]["classification:classes"]:
        del row["title"]  # of the classification extension 2.0, which stac-model does not know yet
    MLModelProperties.model_validate(known)
    assert properties["license"] == "CC-BY-4.0"
    assert properties["gsd"] == pytest.approx(10, rel=0.01)
    assert properties["mlm:pretrained_source"] == "a test"
    assert properties["mlm:hyperparameters"]["schedule"]["steps"] == 12
    classes = properties["mlm:output"][0]["classification:classes"]
    assert [c["title"] for c in classes] == ["low", "high"]
    assert list(properties["mlm:input"][0]["bands"]) == ["red", "nir"]
    weights = (tmp_path / "m" / "weights.safetensors").read_bytes()
    import hashlib

    assert card["assets"]["weights"]["file:checksum"] == "1220" + hashlib.sha256(weights).hexdigest()
    assert set(properties["scenemask:training"]["accuracy"]) == {"val", "test"}


_START = "import sys; from pipeline.cli import main; sys.exit(main())"


def _begin(config: Path, model: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _START, "train", str(config), "-o", str(model), "-v"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _wait_for_step(run: subprocess.Popen[str], step: int) -> None:
    assert run.stderr is not None
    for line in run.stderr:
        first = line.split()[0].partition("/")[0] if line.strip() else ""
        if first.isdecimal() and int(first) >= step:
            return
    pytest.fail("training ended before it could be cut off")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_cut_off_and_run_again_equals_not_cut_off(folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    """D20: the same loss curve, whenever the end came."""
    changes: dict[str, Any] = {
        "schedule": {"steps": 24, "check_every": 6, "learning_rate": 0.01},
        "network": {"depth": 2, "width": 4, "dropout": 0.2},
        "augment": {"rotate_deg": 20, "brightness": 0.2},
    }
    config = _config(folder, tmp_path, **changes)
    whole = tmp_path / "whole"
    train_model(make_train_settings(yaml.safe_load(config.read_text())), whole)
    run = _begin(config, tmp_path / "model")
    _wait_for_step(run, 15)
    run.send_signal(number)
    if number == signal.SIGTERM:
        assert run.wait(timeout=60) == 75
    run.communicate(timeout=60)
    left = sorted((tmp_path / "model" / ".training").glob("checkpoint-*.pt"))
    assert 1 <= len(left) <= 2
    left[-1].write_bytes(left[-1].read_bytes()[:1000]) if len(left) == 2 and number == signal.SIGKILL else None
    again = _begin(config, tmp_path / "model")
    again.communicate(timeout=120)
    assert again.returncode == 0
    assert (
        np.abs(np.subtract(_losses(tmp_path / "model" / "training.csv"), _losses(whole / "training.csv"))).max() < 1e-6
    )
    assert (tmp_path / "model" / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert not (tmp_path / "model" / ".training").exists()


def test_other_settings_are_not_mixed_into_a_training(folder: Path, tmp_path: Path, cli: Cli) -> None:
    config = _config(folder, tmp_path)

    def stop_soon() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_model(make_train_settings(yaml.safe_load(config.read_text())), tmp_path / "model", stop=stop_soon)
    status, _, err = cli("train", config, "-o", tmp_path / "model", "schedule.learning_rate=0.5")
    assert status == 5
    assert_block(err, "OU-040")
    assert "schedule.learning_rate was 0.01, is 0.5" in err
    assert cli("train", config, "-o", tmp_path / "model", "schedule.learning_rate=0.02", "--overwrite", "-q")[0] == 0


def test_a_model_that_is_being_replaced_stays_until_the_new_one_is_there(
    folder: Path, tmp_path: Path, cli: Cli
) -> None:
    config = _config(folder, tmp_path)
    assert cli("train", config, "-o", tmp_path / "model", "-q")[0] == 0
    before = (tmp_path / "model" / "weights.safetensors").read_bytes()
    other = make_train_settings({**yaml.safe_load(config.read_text()), "seed": 9})

    def stop_soon() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_model(other, tmp_path / "model", overwrite=True, stop=stop_soon)
    assert (tmp_path / "model" / "weights.safetensors").read_bytes() == before
    sm.load_model(tmp_path / "model")
    assert cli("train", config, "-o", tmp_path / "model", "seed=9", "-q")[0] == 0  # goes on, without --overwrite
    assert (tmp_path / "model" / "weights.safetensors").read_bytes() != before


def test_a_loss_that_is_no_number_ends_training_and_keeps_the_last_state(
    cli: Cli, folder: Path, tmp_path: Path
) -> None:
    """D21."""
    schedule = {"steps": 40, "check_every": 2, "learning_rate": 1e30, "shape": "constant"}
    network = {"depth": 2, "width": 4, "norm": "none"}
    config = _config(folder, tmp_path, schedule=schedule, network=network)
    status, _, err = cli("train", config, "-o", tmp_path / "model")
    assert status == 4
    assert_block(err, "TR-020")
    assert "times in a row" in err
    assert list((tmp_path / "model" / ".training").glob("checkpoint-*.pt"))


def test_infinite_pixels_of_a_scene_are_missing_not_learnt_from(tmp_path: Path) -> None:
    scene, labels = write_labelled(tmp_path)
    with rasterio.open(scene) as file:
        pixels = file.read().astype(np.float32)
    pixels[:, 10:40, 10:40] = np.inf
    pixels[0, 50:60, :] = np.nan
    write_scene(tmp_path / "float.tif", pixels, names=("red", "nir"))
    settings = make_train_settings(document(tmp_path / "float.tif", labels))
    made = train_model(settings, tmp_path / "model")
    assert made.training["skipped_steps"] == 0
    assert sum(part["not_learnt_from"] for part in made.training["data"].values() if isinstance(part, dict)) > 800


def test_a_model_can_start_from_another(folder: Path, tmp_path: Path, cli: Cli) -> None:
    first = train_model(
        make_train_settings(document(folder / "scene.tif", folder / "labels.tif", network={"depth": 2, "width": 4})),
        tmp_path / "first",
    )
    network = {"depth": 2, "width": 4, "start": str(first.folder), "freeze_steps": 100}
    classes = [{"name": "low", "background": True}, "high", "third"]
    settings = make_train_settings(
        document(folder / "scene.tif", folder / "labels.tif", network=network, classes=classes)
    )
    second = train_model(settings, tmp_path / "second")
    old, new = (sm.load_model(made.folder).network.state_dict() for made in (first, second))
    assert all((old[k] == new[k]).all() for k in old if k.startswith(("encoder", "bottleneck")))
    assert new["head.weight"].shape[0] == 3
    assert not all((old[k] == new[k]).all() for k in old if k.startswith("decoder"))
    status, _, err = cli("train", _config(folder, tmp_path, network={**network, "width": 6}), "-o", tmp_path / "third")
    assert status == 4
    assert_block(err, "TR-021")


def test_a_start_serves_other_bands_and_several_scenes(folder: Path, tmp_path: Path) -> None:
    """Two scenes, the second with its bands the other way round, named by itself; then one band more."""
    first, labels = write_labelled(tmp_path / "one", seed=1)
    with rasterio.open(first) as file:
        pixels = file.read()
    second = write_scene(tmp_path / "two.tif", pixels[::-1].copy(), names=("NIR", "RED"), nodata=0)
    scenes = [
        {"scene": str(folder / "scene.tif"), "labels": str(folder / "labels.tif")},
        {"scene": str(second), "labels": str(labels), "bands": ["RED", "NIR"]},
    ]
    schedule = {"steps": 40, "check_every": 20, "learning_rate": 0.01}
    document_ = document(folder / "scene.tif", folder / "labels.tif", bands=["red", "nir"], schedule=schedule)
    made = train_model(make_train_settings({**document_, "scenes": scenes}), tmp_path / "model")
    assert made.training["accuracy"]["test"]["mean_iou"] > 0.7
    assert len(made.training["data"]["scenes"]) == 2

    third = write_scene(tmp_path / "three.tif", np.concatenate([pixels, pixels[:1]]), names=("red", "nir", "red2"))
    network = {"depth": 2, "width": 4, "start": str(made.folder), "freeze_steps": 100}
    settings = make_train_settings(document(third, labels, network=network))
    train_model(settings, tmp_path / "wider")
    old, new = (sm.load_model(p).network.state_dict()["encoder.0.0.weight"] for p in (made.folder, tmp_path / "wider"))
    assert np.allclose(new, old[:, [0, 1, 0]] * (2 / 3))


def test_training_stops_when_it_gets_no_better(folder: Path, tmp_path: Path) -> None:
    schedule = {"steps": 500, "check_every": 2, "patience": 2, "learning_rate": 1e-12, "shape": "constant"}
    settings = make_train_settings(document(folder / "scene.tif", folder / "labels.tif", schedule=schedule))
    made = train_model(settings, tmp_path / "model")
    assert made.training["steps"] < 40
    assert made.training["best_step"] < made.training["steps"]


def test_all_parts_of_the_loss_and_all_changes_of_chips_together(folder: Path, tmp_path: Path) -> None:
    settings = make_train_settings(
        document(
            folder / "scene.tif",
            folder / "labels.tif",
            loss={"focal": 0.5, "class_weights": "balanced", "border_weight": 10},
            augment={"rotate_deg": 30, "scale": 0.2, "elastic_px": 3, "brightness": 0.2, "contrast": 0.2,
                     "band_drop": 0.2},
            schedule={"steps": 30, "check_every": 10, "learning_rate": 0.01, "patience": 1, "shape": "cosine"},
            downsample=2,
            chips={"size": 16, "batch": 4, "sampling": "grid"},
            split={"block_px": 32, "guard_px": 2, "val": 0.2, "test": 0.2},
            precision="bfloat16",
            tensorboard=True,
        )
    )  # fmt: skip
    made = train_model(settings, tmp_path / "model")
    assert made.training["precision"] == "bfloat16"
    assert all(np.isfinite(_losses(tmp_path / "model" / "training.csv")))
    assert list((tmp_path / "model" / "tensorboard").glob("events*"))
    assert sm.load_model(tmp_path / "model").spec.gsd_m == pytest.approx(20, rel=0.01)


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_export_and_segment_with_it(cli: Cli, folder: Path, tmp_path: Path, kind: str) -> None:
    train_model(make_train_settings(document(folder / "scene.tif", folder / "labels.tif")), tmp_path / "model")
    status, out, err = cli("export", tmp_path / "model", "--to", kind, "-o", tmp_path / "other", "--json")
    assert status == 0, err
    assert json.loads(out)["max_difference"] <= 1e-4
    card = json.loads((tmp_path / "other" / "model.json").read_text())["properties"]
    assert card["scenemask:training"]["steps"] == 12
    trust = ("--trust-model",) if kind == "pt2" else ()
    masks = []
    for name, more in (("model", ()), ("other", trust)):
        status, _, err = cli(
            "segment", folder / "scene.tif", "-m", tmp_path / name, "-o", tmp_path / f"{name}-out", "-q",
            "--precision", "float32", "--vectors", "none", *more,
        )  # fmt: skip
        assert status == 0, err
        with rasterio.open(tmp_path / f"{name}-out" / "mask.tif") as file:
            masks.append(file.read(1))
    assert np.count_nonzero(masks[0] != masks[1]) <= SIZE * SIZE * 1e-4
    status, _, err = cli("export", tmp_path / "model", "--to", kind, "-o", tmp_path / "other")
    assert status == 5
    assert_block(err, "OU-041")
    status, _, err = cli("export", tmp_path / "other", "--to", kind, "-o", tmp_path / "third", *trust[:0])
    assert status == 4


def test_what_cannot_be_learnt_is_refused_before_anything_is_made(cli: Cli, folder: Path, tmp_path: Path) -> None:
    status, _, err = cli("train", tmp_path / "none.yaml", "-o", tmp_path / "m")
    assert status == 2
    assert_block(err, "CF-001")
    status, _, err = cli("train", _config(folder, tmp_path), "-o", tmp_path / "m", "scenes.0.labels=none.gpkg")
    assert status == 3
    assert_block(err, "TR-001")
    assert not (tmp_path / "m").exists()
    assert cli("train", tmp_path / "config.yaml", "-o", tmp_path / "m", "-q")[0] == 0  # mended, and not refused


def test_two_trainings_in_one_folder(folder: Path, tmp_path: Path, cli: Cli) -> None:
    config = _config(folder, tmp_path, schedule={"steps": 4000, "check_every": 1000})
    run = _begin(config, tmp_path / "model")
    try:
        _wait_for_step(run, 1)
        status, _, err = cli("train", config, "-o", tmp_path / "model")
        assert status == 5
        assert_block(err, "OU-002")
    finally:
        run.kill()
        run.communicate()
