"""Networks from files that hold the computation too: ONNX, TorchScript, torch.export."""

from __future__ import annotations

import json
import pickle
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import pipeline as sm
from pipeline.errors import ModelError
from pipeline.grid import exact_tiling
from pipeline.model import (
    BareOptions,
    EngineSpec,
    ModelSpec,
    Scaling,
    adopt_model,
    load_model,
    make_engine,
    model_from_module,
    openvino,
)
from pipeline.model.foreign import NetworkIO, load_foreign
from pipeline.model.onnx_file import num_weights
from pipeline.run.inspect import inspect_target
from tests.networks import predict_by_tiles, random_scene, reader, unet_model, whole_forward
from tests.scenes import write_scene

if TYPE_CHECKING:
    from pathlib import Path

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
needs_openvino = pytest.mark.skipif(not openvino.available(), reason="OpenVINO is not installed")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class _Odd(nn.Module):
    """Channels last, two outputs, the second one counts."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return logits.mean(dim=(1, 2, 3)), logits


def _export(
    network: nn.Module,
    path: Path,
    *,
    side: int | None = None,
    width: int | None = None,
    last: bool = False,
    multiple: int = 1,
) -> Path:
    """Save a network in the format that the suffix names; sides are free unless given, or multiples of a number."""
    x = torch.zeros(1, 2, side or 64, width or side or 64)
    x = x.permute(0, 2, 3, 1).contiguous() if last else x
    axes = (1, 2) if last else (2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix == ".onnx":
            dynamic = None if side else {"x": {a: f"side{a}" for a in axes}}
            torch.onnx.export(network, (x,), str(path), dynamo=False, dynamic_axes=dynamic, input_names=["x"])
        elif path.suffix == ".pt2":
            dim = torch.export.Dim
            free = {a: dim.DYNAMIC if multiple == 1 else multiple * dim(f"side{a}") for a in axes}
            torch.export.save(torch.export.export(network, (x,), dynamic_shapes=None if side else (free,)), path)
        else:
            torch.jit.save(torch.jit.trace(network, x), path)
    return path


class _UNet(nn.Module):
    """Two poolings and their skips, as others would write it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        convs = [nn.Conv2d(i, o, 3, padding=1) for i, o in ((2, 8), (8, 8), (8, 8), (16, 8), (16, 8))]
        self.first, self.second, self.deepest, self.third, self.fourth = convs
        self.up_once, self.up_again = nn.ConvTranspose2d(8, 8, 2, 2), nn.ConvTranspose2d(8, 8, 2, 2)
        self.head = nn.Conv2d(8, 3, 1)
        with torch.no_grad():  # signals stay as large as they are, and outputs are those of a trained network
            for conv in [*convs, self.up_once, self.up_again]:
                nn.init.kaiming_normal_(conv.weight)
            self.head.weight.div_(self(torch.randn(1, 2, 64, 64)).abs().max() / 8)

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(self.first(x))
        middle = torch.relu(self.second(functional.max_pool2d(fine, 2)))
        deep = torch.relu(self.deepest(functional.max_pool2d(middle, 2)))
        up = torch.relu(self.third(torch.cat([middle, self.up_once(deep)], dim=1)))
        up = torch.relu(self.fourth(torch.cat([fine, self.up_again(up)], dim=1)))
        logits: Tensor = self.head(up)
        return logits


def _spec(**changes: Any) -> ModelSpec:
    given = {"name": "n", "bands": ("a", "b"), "classes": ("c0", "c1", "c2"), "scaling": Scaling.identity(2)}
    return ModelSpec.model_validate({**given, **changes})


def _plain() -> nn.Module:
    """A small fully convolutional network with stride 4, without Python checks of shapes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, stride=4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("name", ["n.onnx", "n.pt2", "n.torchscript", "n.pt"])
def test_every_format_gives_what_the_network_gives(tmp_path: Path, name: str) -> None:
    network = _plain()
    path = _export(network, tmp_path / name)
    model = load_model(path, bare=BareOptions(class_names=("c0", "c1", "c2")), trust_model=True)
    assert len(model.spec.bands) == 2
    assert (model.traits.stride, model.traits.halo_px, model.traits.tiling) == (4, 8, "exact")
    x = torch.randn(1, 2, 64, 96)
    again = pickle.loads(pickle.dumps(model))
    for backend in ("onnxruntime", "openvino") if name == "n.onnx" else ("torch", "openvino"):
        spec = EngineSpec.model_validate(
            {"backend": backend, "device": "cpu", "precision": "float32", "threads": 1, "one_size": True}
        )
        with torch.inference_mode():
            assert torch.allclose(make_engine(again, spec).run(x), network(x), atol=1e-5), backend


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("n.onnx", "onnxruntime"),
        pytest.param("n.onnx", "openvino", marks=needs_openvino),
        ("n.pt2", "torch"),
        ("n.torchscript", "torch"),
    ],
)
def test_exact_law_of_files(tmp_path: Path, name: str, backend: str) -> None:
    """Tiles computed from a file equal one whole forward of the network that it was made of, in PyTorch."""
    network, shape = _UNet().eval(), (203, 170)
    scaling = Scaling(scale=(1.0,) * 2, offset=(0.0,) * 2, mean=(500.0,) * 2, std=(250.0,) * 2)
    path = _export(network, tmp_path / name, multiple=4)
    model = adopt_model(tmp_path / "folder", path, _spec(scaling=scaling), trust_model=True)
    traits, data = model.traits, random_scene(2, shape)
    assert (traits.tiling, traits.stride, traits.halo_px) == ("exact", 4, 12)
    tiling = exact_tiling(shape, core_hw=(64, 48), halo_px=12, stride=4, margin_px=0, sizes=traits.sizes, tile_px=64)
    result = predict_by_tiles(model, tiling, reader(data), backend=backend)
    after = [12 + -(side + 24) % 4 for side in shape]
    expected = whole_forward(model_from_module(network, model.spec), data, before=12, after_hw=(after[0], after[1]))
    assert result.probabilities is not None
    assert np.abs(result.probabilities - expected).max() <= 1e-5
    top = np.sort(expected, axis=0)
    assert ((result.mask == expected.argmax(axis=0)) | (top[-1] - top[-2] < 2e-5)).all()


@pytest.mark.parametrize("name", ["n.onnx", "n.pt2", "n.torchscript"])
@pytest.mark.parametrize("output", [None, 1])
def test_layout_and_output_are_configured(tmp_path: Path, name: str, output: int | None) -> None:
    network = _plain()
    path = _export(_Odd(network).eval(), tmp_path / name, last=True)
    model = adopt_model(tmp_path / "folder", path, _spec(), trust_model=True, layout="channels_last", output=output)
    again = load_model(tmp_path / "folder", trust_model=True)
    assert again.digest == model.digest
    x = torch.randn(1, 2, 64, 96)
    backends = ("onnxruntime", "openvino") if name == "n.onnx" else ("torch",)
    for backend in backends:
        spec = EngineSpec.model_validate(
            {"backend": backend, "device": "cpu", "precision": "float32", "threads": 1, "one_size": True}
        )
        with torch.inference_mode():
            assert torch.allclose(make_engine(again, spec).run(x), network(x), atol=1e-5)


def test_a_wrong_output_is_refused_by_name(tmp_path: Path) -> None:
    path = _export(_plain(), tmp_path / "n.onnx")
    network = load_foreign(path, NetworkIO(file="n.onnx", format="onnx", output="masks"), trust=False)
    with pytest.raises(ModelError, match="masks") as caught:
        network(torch.zeros(1, 2, 64, 64))
    assert caught.value.code == "MD-005"


@pytest.mark.parametrize("name", ["n.pt2", "n.torchscript", "n.pt"])
def test_programs_need_trust_and_show_their_digest(tmp_path: Path, name: str) -> None:
    path = _export(_plain(), tmp_path / name)
    with pytest.raises(ModelError, match=r"SHA-256 [0-9a-f]{64}") as caught:
        load_model(path)
    assert caught.value.code == "MD-008"
    assert "--trust-model" in str(caught.value.fix)


@pytest.mark.parametrize("name", ["n.onnx", "n.pt2", "n.torchscript"])
@pytest.mark.parametrize("keep", [0, 0.3, 0.9])
def test_d1_cut_off_files_are_refused(tmp_path: Path, name: str, keep: float) -> None:
    path = _export(_plain(), tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ModelError) as caught:
        load_model(path, trust_model=True)
    assert caught.value.code in {"MD-001", "MD-005"}
    assert caught.value.exit_code == 4


def test_d17_an_opset_of_the_future_names_versions_and_the_install_line(tmp_path: Path) -> None:
    path = _export(_plain(), tmp_path / "n.onnx")
    document = onnx.load(path)
    document.opset_import[0].version = 999
    onnx.save(document, path)
    with pytest.raises(ModelError, match="too old") as caught:
        load_model(path)
    assert caught.value.code == "MD-014"
    assert "pip install" in str(caught.value.fix)


def test_d17_a_missing_runtime_names_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _export(_plain(), tmp_path / "n.onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="not installed") as caught:
        load_model(path)
    assert "scenemask[onnx]" in str(caught.value.fix)


def test_d17_a_runtime_without_cuda_is_named_where_cuda_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the file nor its version is to blame, as what ONNX Runtime itself raises would make believe."""
    import onnxruntime

    model = load_model(_export(_plain(), tmp_path / "n.onnx"), bare=BareOptions(class_names=("x", "y", "z")))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    spec = EngineSpec(backend="onnxruntime", device="cuda", precision="float32", threads=1, one_size=True)
    with pytest.raises(ModelError) as caught:
        make_engine(model, spec)
    error = caught.value
    assert (error.code, error.exit_code, error.where) == ("MD-014", 4, "n.onnx")
    assert "no CUDAExecutionProvider" in str(error)
    assert "'CPUExecutionProvider'" in str(error)
    assert "too old" not in str(error)
    assert "onnxruntime-gpu" in str(error.fix)
    on_cpu = make_engine(model, spec.model_copy(update={"device": "cpu"}))
    assert on_cpu.run(torch.zeros(1, 2, 8, 8)).shape == (1, 3, 8, 8)


def test_d17_a_cuda_that_does_not_start_is_no_reason_to_go_on_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime lists the provider, its libraries do not load, and the session is the CPU's."""
    import onnxruntime

    model = load_model(_export(_plain(), tmp_path / "n.onnx"), bare=BareOptions(class_names=("x", "y", "z")))
    opened = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *given, providers: opened(*given, providers=["CPUExecutionProvider"])
    )
    spec = EngineSpec(backend="onnxruntime", device="cuda", precision="float32", threads=1, one_size=True)
    with pytest.raises(ModelError, match=r"MD-014.*CUDAExecutionProvider does not start here"):
        make_engine(model, spec)


def _with_external_weights(path: Path, location: str) -> None:
    document = onnx.load(path)
    onnx.save(document, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    document = onnx.load(path, load_external_data=False)
    for tensor in document.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(document.SerializeToString())


def test_weights_beside_the_network_travel_with_it(tmp_path: Path) -> None:
    network = _plain()
    path = _export(network, tmp_path / "n.onnx")
    _with_external_weights(path, "w.bin")
    model = pickle.loads(pickle.dumps(load_model(path, bare=BareOptions(class_names=("x", "y", "z")))))
    (tmp_path / "w.bin").unlink()
    x = torch.randn(1, 2, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(model.network(x), network(x), atol=1e-5)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "gone.bin", "link.bin", "hard.bin"])
def test_weights_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(100_000))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "hard.bin").hardlink_to(tmp_path / "secret.bin")
    path = _export(_plain(), folder / "n.onnx")
    _with_external_weights(path, location)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert caught.value.code == "MD-015"


@pytest.mark.parametrize("name", ["n.onnx", "n.pt2"])
def test_a_fixed_size_is_blended_and_says_so(tmp_path: Path, name: str) -> None:
    path = _export(_plain(), tmp_path / name, side=96)
    model = load_model(path, trust_model=True)
    assert model.traits.tiling == "blend"
    assert "96 px only" in model.traits.reason
    assert model.traits.sizes.at_least(1) == 96
    with pytest.raises(ValueError, match="at most 96"):
        model.traits.sizes.at_least(97)


@pytest.mark.parametrize("name", ["n.onnx", "n.pt2"])
def test_a_fixed_size_that_is_no_square_is_refused(tmp_path: Path, name: str) -> None:
    path = _export(_plain(), tmp_path / name, side=64, width=96)
    with pytest.raises(ModelError, match="64 x 96 px only") as caught:
        load_model(path, trust_model=True)
    assert caught.value.code == "MD-007"


class _AtOneSize(nn.Module):
    """Its shapes are in the program, as those of vision transformers are."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.mix = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x).view(1, 3, self.side * self.side).view(1, 3, self.side, self.side)


@pytest.mark.parametrize("side", [224, 320])
def test_a_program_that_fails_on_all_sizes_but_one_is_given_that(tmp_path: Path, side: int) -> None:
    """TorchScript does not tell what it takes: it is tried."""
    path = _export(_AtOneSize(side).eval(), tmp_path / "n.torchscript", side=side)
    model = load_model(path, bare=BareOptions(class_names=("c0", "c1", "c2")), trust_model=True)
    assert f"{side} px only" in model.traits.reason
    scene = write_scene(tmp_path / "s.tif", random_scene(2, (400, 700)))
    result = sm.segment(scene, model, tmp_path / "out", vectors="none")
    assert result.summary["plan"]["patch_px"] == [side, side]


def test_one_output_of_probabilities_decides_between_two_classes(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(2, 1, 1), nn.Sigmoid()).eval()
    model = load_model(_export(network, tmp_path / "n.onnx"), bare=BareOptions(activation="none"))
    assert model.spec.binary
    assert model.spec.classes == ("class 0", "class 1")


def test_d3_d5_counts_that_differ_are_refused(tmp_path: Path) -> None:
    path = _export(_plain(), tmp_path / "n.onnx")
    with pytest.raises(ModelError) as caught:
        load_model(path, bare=BareOptions(class_names=("only", "two")))
    assert caught.value.code == "MD-003"
    with pytest.raises(ModelError):
        load_model(path, bare=BareOptions(mean=(1.0, 2.0, 3.0)))


def test_traits_written_into_the_card_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.model import write_traits

    model = adopt_model(tmp_path / "folder", _export(_plain(), tmp_path / "n.onnx"), _spec())
    write_traits(model)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr("pipeline.model.model.probe", lambda *_, **__: pytest.fail("measured again"))
    assert load_model(tmp_path / "folder").traits == model.traits
    card = tmp_path / "folder" / "model.json"
    document = json.loads(card.read_text())
    document["properties"]["scenemask:traits"]["key"] = "of another model"
    card.write_text(json.dumps(document))
    with pytest.raises(pytest.fail.Exception):
        _ = load_model(tmp_path / "folder").traits


def test_the_probe_sees_through_a_library_that_swallows_nan(tmp_path: Path) -> None:
    """ONNX Runtime's maximum drops NaN; the halo must not come out too small for it."""
    model = unet_model(depth=3, width=8)
    path = _export(model.network, tmp_path / "n.onnx")
    traits = load_model(path, bare=BareOptions(class_names=("x", "y", "z"))).traits
    assert (traits.stride, traits.halo_px) == (model.traits.stride, model.traits.halo_px) == (8, 48)


def test_what_probing_took_is_given_back(tmp_path: Path) -> None:
    """ONNX Runtime keeps the memory of a session's largest forward as long as the session lives."""
    model = load_model(_export(_plain(), tmp_path / "n.onnx"), bare=BareOptions(bands=("a", "b")))
    model._traits.clear()
    assert model._measured_traits().stride > 0
    assert "session" not in vars(model.network)
    assert model.network(torch.zeros(1, 2, 64, 64)).shape[-1] == 64


@pytest.mark.parametrize("name", ["n.onnx", "n.pt2"])
def test_inspect_tells_what_is_in_a_file_and_which_output_counts(tmp_path: Path, name: str) -> None:
    path = _export(_Odd(_plain()).eval(), tmp_path / name, side=96, last=True)
    adopt_model(tmp_path / "m", path, _spec(), trust_model=True, layout="channels_last", output=1)
    told = inspect_target(tmp_path / "m", trust_model=True)
    assert (told["format"], told["layout"]) == (path.suffix[1:], "channels_last")
    assert (told["output_that_counts"], told["patch_sides_px"]) == ("1", "96 only")
    assert {row["sizes"] for row in told["outputs"]} == {"1", "1 x 96 x 96 x 3"}
    assert told["parameters"] == sum(weights.numel() for weights in _plain().parameters())
    assert (told["same_each_time"], told["tiling"]) == ("yes", "blend")


def test_an_onnx_files_weights_are_its_arrays_of_floats() -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is an extra")
    arrays = [np.zeros((2, 3), np.float32), np.zeros(5, np.float64), np.float32(1).reshape(()), np.arange(4)]
    tensors = [onnx.numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(arrays)]
    graph = onnx.helper.make_graph([], "g", [], [], initializer=tensors)
    assert num_weights(onnx.helper.make_model(graph).SerializeToString()) == 2 * 3 + 5
