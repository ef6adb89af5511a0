"""Weights files, good and bad: nothing is run that was not ours to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import ModelError
from pipeline.model import BareOptions, Model, ModelSpec, Scaling, UNet, load_model, model_from_module, save_model
from tests.networks import unet_model


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Model, Path]:
    made = unet_model(depth=2)
    assert isinstance(made.network, UNet)
    return save_model(tmp_path / "model", made.network, made.spec), tmp_path / "model"


def test_a_saved_model_is_the_same_model(saved: tuple[Model, Path]) -> None:
    model, folder = saved
    again = load_model(folder)
    x = torch.randn(1, 2, 32, 32)
    assert again.digest == model.digest
    assert torch.equal(again.network(x), model.network(x))
    document = json.loads((folder / "model.json").read_text())
    assert document["type"] == "Feature"
    assert document["stac_version"].startswith("1.")
    assert any("mlm" in uri for uri in document["stac_extensions"])
    assert document["properties"]["mlm:input"][0]["bands"] == ["b0", "b1"]


def test_the_digest_changes_with_weights_and_with_meaning(saved: tuple[Model, Path]) -> None:
    model, _ = saved
    other = unet_model(depth=2, seed=1)
    renamed = model.spec.model_copy(update={"classes": ("x", "y", "z")})
    assert other.digest != unet_model(depth=2).digest
    assert (
        model_from_module(model.network, renamed, digest="w").digest
        != model_from_module(model.network, model.spec, digest="w").digest
    )


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_bare_weights_file_works(saved: tuple[Model, Path], tmp_path: Path, suffix: str) -> None:
    model, folder = saved
    path = tmp_path / f"bare{suffix}"
    if suffix == ".pt":
        torch.save(model.network.state_dict(), path)
    else:
        path.write_bytes((folder / "weights.safetensors").read_bytes())
    bare = load_model(path, bare=BareOptions(class_names=("a", "b", "c"), mean=(500.0,), std=(250.0,)))
    x = torch.randn(1, 2, 32, 32)
    assert torch.equal(bare.network(x), model.network(x))
    assert bare.spec.classes == ("a", "b", "c")
    assert bare.spec.scaling.mean == (500.0, 500.0)


UNETS = [
    {"upsampling": up, "norm": norm, "padding": padding, "skips": skips}
    for up in ("transposed", "bilinear", "nearest")
    for norm in ("batch", "group", "instance", "none")
    for padding, skips in (("same", True), ("same", False), ("valid", True))
]


def _same_network(path: Path, model: Model) -> bool:
    x = torch.randn(1, 2, 60, 60)
    found = load_model(path).network
    assert isinstance(found, UNet)
    assert isinstance(model.network, UNet)
    return found.config == model.network.config and torch.equal(found(x), model.network(x))


@pytest.mark.parametrize("config", UNETS, ids=lambda c: "-".join(str(v) for v in c.values()))
def test_bare_weights_are_the_same_network_or_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    model = unet_model(depth=2, **config)
    state = model.network.state_dict()
    torch.save(state, tmp_path / "whole.pt")
    assert _same_network(tmp_path / "whole.pt", model)
    torch.save(dict(state), tmp_path / "tensors-alone.pt")
    if config["upsampling"] == "transposed" and config["norm"] in {"batch", "none"}:
        assumed = config["padding"] == "same"  # no tensor tells the padding: README says what is assumed
        assert _same_network(tmp_path / "tensors-alone.pt", model) == assumed
    else:
        with pytest.raises(ModelError, match=r"MD-004.*do not tell.*safetensors"):
            load_model(tmp_path / "tensors-alone.pt")


@pytest.mark.parametrize("text", ["no json", '{"bands": 0, "outputs": 2}', '["list"]'])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_configuration_that_is_none(saved: tuple[Model, Path], tmp_path: Path, suffix: str, text: str) -> None:
    state = saved[0].network.state_dict()
    if suffix == ".pt":
        state._metadata[""]["scenemask:unet"] = text  # type: ignore[attr-defined]
        torch.save(state, tmp_path / "w.pt")
    else:
        save_file(dict(state), tmp_path / "w.safetensors", metadata={"scenemask:unet": text})
    with pytest.raises(ModelError, match=r"MD-001.*configuration"):
        load_model(tmp_path / f"w{suffix}")


class _Marker:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_d2_t1_a_pickled_module_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    torch.save({"weights": _Marker(marker)}, tmp_path / "evil.pt")
    torch.save(unet_model().network, tmp_path / "module.pt")
    for name in ("evil.pt", "module.pt"):
        with pytest.raises(ModelError, match="MD-002") as caught:
            load_model(tmp_path / name)
        assert caught.value.exit_code == 4
    assert not marker.exists()


def test_t2_a_program_is_refused(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Conv2d(2, 3, 1), torch.zeros(1, 2, 4, 4)), tmp_path / "script.pt")
    with pytest.raises(ModelError, match="MD-008"):
        load_model(tmp_path / "script.pt")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_d1_truncated_weights(saved: tuple[Model, Path], tmp_path: Path, share: float, suffix: str) -> None:
    model, folder = saved
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pt":
        torch.save(model.network.state_dict(), path)
    else:
        path.write_bytes((folder / "weights.safetensors").read_bytes())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ModelError, match="MD-001"):
        load_model(path)


def test_d1_weights_that_are_not_those_of_model_json(saved: tuple[Model, Path]) -> None:
    _, folder = saved
    state = load_file(folder / "weights.safetensors")
    state["head.bias"] = state["head.bias"] + 1
    save_file(state, folder / "weights.safetensors")
    with pytest.raises(ModelError, match="SHA-256"):
        load_model(folder)


def test_d1_missing_files(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "none.safetensors", tmp_path / "empty", tmp_path / "none" / "model.json"):
        with pytest.raises(ModelError, match="MD-001"):
            load_model(path)


def test_d3_class_count_differs(saved: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = saved
    with pytest.raises(ModelError, match=r"MD-003.*3 output channels.*needs 2 \(a, b\)"):
        load_model(folder / "weights.safetensors", bare=BareOptions(class_names=("a", "b")))
    document = json.loads((folder / "model.json").read_text())
    document["properties"]["scenemask:model"]["classes"].append("one too many")
    (folder / "model.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match="MD-003"):
        load_model(folder)
    assert model.spec.classes == ("c0", "c1", "c2")


def test_d4_keys_that_do_not_fit(saved: tuple[Model, Path], tmp_path: Path) -> None:
    model, _ = saved
    state = dict(model.network.state_dict())
    state["extra.weight"] = torch.zeros(1)
    del state["head.bias"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"MD-004.*missing head.bias.*unexpected extra.weight"):
        load_model(tmp_path / "w.pt")


def test_options_beside_model_json_are_refused(saved: tuple[Model, Path]) -> None:
    with pytest.raises(ModelError, match=r"MD-010.*class_names"):
        load_model(saved[1], bare=BareOptions(class_names=("a", "b", "c")))


def test_a_model_json_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(ModelError, match="MD-001"):
        load_model(tmp_path)


def test_scaling_is_checked_when_built() -> None:
    with pytest.raises(ValueError, match="std must not be 0"):
        Scaling(scale=(1,), offset=(0,), mean=(0,), std=(0,))
    with pytest.raises(ValueError, match="one value per band"):
        Scaling(scale=(1, 1), offset=(0,), mean=(0,), std=(1,))
    with pytest.raises(ValueError, match="2 bands"):
        ModelSpec(name="x", bands=("a", "b"), classes=("c", "d"), scaling=Scaling.identity(3))
