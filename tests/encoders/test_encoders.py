"""A U-Net of segmentation-models-pytorch through the whole of it: train, card, segment, and from a state dict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

import pipeline as sm
from pipeline.errors import UsageError
from pipeline.model import ModelSpec, Scaling
from pipeline.model.export import save_as_onnx
from pipeline.train import make_train_settings, train_model
from pipeline.train.networks import make_network
from tests.labelled import blobs, document, write_labelled


def test_train_with_an_encoder_and_segment_without_its_package(tmp_path: Path) -> None:
    scene, labels = write_labelled(tmp_path)
    settings = make_train_settings(
        document(
            scene,
            labels,
            network={"encoder": "resnet18", "freeze_steps": 2},
            chips={"size": 64, "batch": 4},
            schedule={"steps": 40, "check_every": 20, "learning_rate": 3e-3},
        )
    )
    made = train_model(settings, tmp_path / "model")
    assert made.training["accuracy"]["test"]["mean_iou"] > 0.6
    model = sm.load_model(tmp_path / "model")
    assert type(model.network).__name__ == "OnnxNetwork"
    sm.segment(scene, tmp_path / "model", tmp_path / "out", vectors="none")
    with rasterio.open(tmp_path / "out" / "mask.tif") as file:
        assert (file.read(1) == blobs()).mean() > 0.8


def test_the_encoder_stands_still_while_it_is_frozen(tmp_path: Path) -> None:
    scene, labels = write_labelled(tmp_path)
    network = {"encoder": "resnet18", "freeze_steps": 100}
    settings = make_train_settings(
        document(scene, labels, network=network, chips={"size": 64, "batch": 2}, schedule={"steps": 3})
    )
    before = make_network(settings.network, bands=2, outputs=2, seed=0).encoder.state_dict()
    from pipeline.train import teach

    kept = {}
    original = teach.save_trained

    def keep(folder: Path, trained: torch.nn.Module, *arguments: object, **more: object) -> None:
        kept.update(trained.encoder.state_dict())
        original(folder, trained, *arguments, **more)

    patch = pytest.MonkeyPatch()
    patch.setattr(teach, "save_trained", keep)
    try:
        train_model(settings, tmp_path / "model")
    finally:
        patch.undo()
    assert all(torch.equal(before[name], kept[name]) for name in before)


def test_an_unknown_encoder_is_refused() -> None:
    settings = make_train_settings(document(Path("s"), Path("l"), network={"encoder": "resnet17"}, chips={"size": 64}))
    with pytest.raises(UsageError, match="resnet17") as error:
        make_network(settings.network, bands=2, outputs=2, seed=0)
    assert error.value.code == "TR-022"


def test_anyones_state_dict_becomes_a_model_folder(tmp_path: Path) -> None:
    """The recipe of docs/training.md."""
    import segmentation_models_pytorch as smp

    theirs = smp.Unet("resnet18", encoder_weights=None, in_channels=2, classes=2)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")

    network = smp.Unet("resnet18", encoder_weights=None, in_channels=2, classes=2)
    network.load_state_dict(torch.load(tmp_path / "theirs.pt", weights_only=True))
    spec = ModelSpec(name="theirs", bands=("red", "nir"), classes=("low", "high"), scaling=Scaling.identity(2))
    save_as_onnx(tmp_path / "model", network, spec, training={}, stride=32)
    x = torch.randn(1, 2, 96, 64)
    with torch.inference_mode():
        expected = theirs.eval()(x)
        assert np.abs((sm.load_model(tmp_path / "model").network(x) - expected).numpy()).max() < 1e-3
