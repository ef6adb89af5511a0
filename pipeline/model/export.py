"""Our U-Net in formats that other software runs, checked against the original."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.model.decision import to_probabilities
from pipeline.model.folder import MODEL_FILE, adopt_model, folder_taken, load_model, publish_model
from pipeline.model.unet import UNet
from pipeline.processes import temporary_folder

if TYPE_CHECKING:
    from pipeline.model.model import Model
    from pipeline.model.spec import ModelSpec

MAX_DIFFERENCE = 1e-4
"""Of probabilities, between an exported network and the original."""
_FILES = {"onnx": "network.onnx", "pt2": "network.pt2"}
_OPSET = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written."""

    file: Path
    max_difference: float
    """Largest difference of a probability, over several shapes and batches."""


def export_model(
    source: str | Path, folder: str | Path, *, kind: Literal["onnx", "pt2"], overwrite: bool = False
) -> Exported:
    """Write a model of our own U-Net as a folder with an ONNX or torch.export file.

    Args:
        source: Model folder or weights file.
        folder: New model folder; appears whole.
        kind: Format. Batch, height and width stay free; sides are multiples of the network's stride, from two on.
        overwrite: Replace a model that is there.

    Raises:
        ModelError: MD-016 not our U-Net, or a package is missing; MD-017 the exported network computes something else.
        OutputError: OU-041, a model is there.
    """
    folder = Path(folder)
    if (folder / MODEL_FILE).exists() and not overwrite:
        raise folder_taken(folder)
    model = load_model(source)
    if not isinstance(model.network, UNet):
        raise ModelError(
            f"{source} is a file of another network already; only scenemask's own U-Net can be exported",
            code="MD-016",
            title="Model cannot be exported",
            where=str(source),
            fix="use the file as it is",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder.parent, f".{folder.name}.made-") as made:
        stride = 1 << model.network.config.depth
        _write(model.network, made / _FILES[kind], kind, bands=model.network.config.bands, stride=stride)
        exported = adopt_model(
            made, made / _FILES[kind], model.spec, trust_model=True, training=_training_of(Path(source))
        )
        difference = _compare(model.network, exported, stride=stride)
        publish_model(made, folder)
    return Exported(file=folder / _FILES[kind], max_difference=difference)


def save_as_onnx(folder: Path, network: nn.Module, spec: ModelSpec, *, training: dict[str, Any], stride: int) -> Model:
    """A model folder with a network that is not our U-Net, as ONNX.

    Args:
        folder: Made if it does not exist.
        network: `(batch, band, y, x)` -> logits of the same size.
        spec: What it expects and gives.
        training: As in `save_model`.
        stride: What the sides of its inputs are multiples of.

    Raises:
        ModelError: MD-016 a package is missing; MD-017 the file computes something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _FILES["onnx"]
    _write(network.eval(), path, "onnx", bands=len(spec.bands), stride=stride)
    made = adopt_model(folder, path, spec, training=training)
    _compare(network, made, stride=stride)
    return made


def _write(network: nn.Module, path: Path, kind: str, *, bands: int, stride: int) -> None:
    # PyTorch tells its own developers what it skips and deprecates.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = _program(network, bands=bands, stride=stride)
        if kind == "pt2":
            torch.export.save(program, path)
            return
        _require("onnx", "onnxscript")
        made: Any = torch.onnx.export(
            program, input_names=["pixels"], output_names=["logits"], opset_version=_OPSET, verbose=False
        )
        made.save(path, external_data=False)


class _Plain(nn.Module):
    """A network without the arguments that only we use."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network(pixels)
        return logits


def _program(network: nn.Module, *, bands: int, stride: int) -> torch.export.ExportedProgram:
    plain = _Plain(network).eval()
    example = torch.zeros(2, bands, 4 * stride, 6 * stride)
    dim = torch.export.Dim
    rows, cols = (stride * dim(name, min=2, max=4096) for name in ("rows", "cols"))
    return torch.export.export(
        plain, (example,), dynamic_shapes={"pixels": {0: dim("batch", min=1, max=1024), 2: rows, 3: cols}}
    )


def _require(*packages: str) -> None:
    import importlib.util  # noqa: PLC0415 - this way round it needs no import of torch.onnx

    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"writing ONNX needs {' and '.join(missing)}",
            code="MD-016",
            title="Model cannot be exported",
            fix='pip install "scenemask[onnx]"',
        )


def _compare(network: nn.Module, exported: Model, *, stride: int) -> float:
    """The largest difference of a probability over several shapes.

    Raises:
        ModelError: MD-017.
    """
    bands = len(exported.spec.bands)
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    with torch.inference_mode():
        for batch, rows, cols in ((1, 4, 4), (2, 5, 8), (3, 2, 3)):
            x = torch.randn(batch, bands, rows * stride, cols * stride, generator=generator)
            for one, other in zip(network.eval()(x), exported.network.eval()(x), strict=True):
                difference = to_probabilities(one, exported.spec) - to_probabilities(other, exported.spec)
                worst = max(worst, float(difference.abs().max()))
    if not worst <= MAX_DIFFERENCE:
        raise ModelError(
            f"the exported network's probabilities differ by up to {worst:.2g}, expected {MAX_DIFFERENCE} at most",
            code="MD-017",
            title="Exported network computes something else",
            fix="report it with the output of `scenemask doctor`",
        )
    return worst


def _training_of(source: Path) -> dict[str, Any]:
    """How it was trained, where its card says so."""
    card = source / MODEL_FILE if source.is_dir() else source
    if card.name != MODEL_FILE or not card.is_file():
        return {}
    training: dict[str, Any] = json.loads(card.read_text())["properties"].get("scenemask:training", {})
    return training
