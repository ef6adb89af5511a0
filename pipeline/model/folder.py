"""The model folder: `model.json` (a STAC item with the Machine Learning Model extension) beside one weights file.

Source: STAC MLM extension 1.4, https://github.com/stac-extensions/mlm. Our own fields start with `scenemask:`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError, OutputError
from pipeline.model.bare import BareOptions, first_line, load_bare, program_format
from pipeline.model.card import WEIGHTS_FILE, foreign_item, model_item
from pipeline.model.foreign import NetworkIO, load_foreign
from pipeline.model.model import Model, model_from_module
from pipeline.model.spec import ModelSpec
from pipeline.model.unet import UNet, UNetConfig
from pipeline.model.weights import build_unet, read_weights, sha256_of_file, write_weights

if TYPE_CHECKING:
    from torch import nn

MODEL_FILE = "model.json"


def load_model(path: str | Path, *, bare: BareOptions | None = None, trust_model: bool = False) -> Model:
    """Load a model folder, or a bare file: weights of our U-Net, ONNX, TorchScript or torch.export.

    Args:
        path: Folder with `model.json`, the `model.json` itself, or a file.
        bare: What a bare file does not say; refused beside a `model.json`, which says it already.
        trust_model: Run TorchScript and torch.export files, which are programs and can do anything.

    Raises:
        ModelError: Missing, truncated, pickled, not fitting (codes MD-001 to MD-015).
    """
    path = Path(path)
    if path.is_dir() or path.name == MODEL_FILE:
        folder = path if path.is_dir() else path.parent
        if bare is not None and bare.given:
            raise ModelError(
                f"{', '.join(bare.given)} given, but {folder / MODEL_FILE} says it already",
                code="MD-010",
                title="Option contradicts model.json",
                where=str(folder),
                fix="drop the option, or change model.json",
            )
        return _load_folder(folder, trust=trust_model)
    return load_bare(path, bare or BareOptions(), trust=trust_model)


def save_model(folder: str | Path, network: UNet, spec: ModelSpec, *, training: dict[str, Any] | None = None) -> Model:
    """Write `model.json` and `weights.safetensors` into `folder` and return the model.

    Args:
        folder: Made when missing.
        network: A U-Net.
        spec: What it expects and gives.
        training: Free-form record of how it was trained, kept as `scenemask:training`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / WEIGHTS_FILE, network)
    document = model_item(network, spec, sha256_of_file(folder / WEIGHTS_FILE), training or {})
    (folder / MODEL_FILE).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return load_model(folder)


def folder_taken(folder: Path) -> OutputError:
    """The OU-041 error for a folder with a model that nobody asked to replace."""
    return OutputError(
        "another model is there",
        code="OU-041",
        title="Model folder is taken",
        where=str(folder),
        fix="give another -o, or --overwrite to replace it",
    )


def publish_model(made: Path, folder: Path) -> None:
    """Move the files of a finished model folder to their place, the card last: a folder without it is no model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).unlink(missing_ok=True)
    for path in sorted(made.iterdir(), key=lambda p: p.name == MODEL_FILE):
        if path.is_file():
            path.replace(folder / path.name)


def adopt_model(
    folder: str | Path,
    file: str | Path,
    spec: ModelSpec,
    *,
    trust_model: bool = False,
    training: dict[str, Any] | None = None,
    **io: Any,
) -> Model:
    """Make a model folder around a network that others trained, and return the model.

    Args:
        folder: Made when missing; `file` is copied into it.
        file: ONNX, TorchScript or torch.export.
        spec: What it expects and gives.
        trust_model: As in `load_model`.
        training: Record of how it was trained, as in `save_model`.
        **io: `layout` and `output` of `NetworkIO`, where the defaults do not fit.

    Raises:
        ModelError: The file cannot be used, or does not fit `spec`.
    """
    folder, file = Path(folder), Path(file)
    folder.mkdir(parents=True, exist_ok=True)
    io_spec = NetworkIO(file=file.name, format=program_format(file), **io)
    content = load_foreign(file, io_spec, trust=trust_model).content
    if file.resolve().parent != folder.resolve():
        (folder / file.name).write_bytes(content)
    sha256 = sha256_of_file(folder / file.name)
    network = load_foreign(folder / file.name, io_spec, trust=trust_model)
    model_from_module(network, spec, digest=f"{sha256}:{io_spec.model_dump_json()}")
    document = foreign_item(io_spec, spec, sha256, training or {})
    (folder / MODEL_FILE).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return load_model(folder, trust_model=trust_model)


def write_traits(model: Model) -> Path:
    """Write what was measured of a model into its `model.json`, so that nobody measures it again.

    Raises:
        ModelError: MD-010 when it was not loaded from a folder.
    """
    if model.path is None or not model.path.is_dir():
        raise ModelError(
            "there is no model.json to write to; expected a model folder",
            code="MD-010",
            title="Option contradicts model.json",
            where=str(model.path or model.spec.name),
            fix="make a folder with save_model or adopt_model first",
        )
    path = model.path / MODEL_FILE
    document = json.loads(path.read_text())
    document["properties"][_TRAITS] = {"key": model.traits_key, **model.traits.model_dump(mode="json")}
    handle, made = tempfile.mkstemp(dir=path.parent, prefix=f".{MODEL_FILE}.", suffix=".tmp")  # a name nobody can plant
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
    Path(made).replace(path)
    return path


_TRAITS = "scenemask:traits"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Card:
    """What a folder's `model.json` says."""

    spec: ModelSpec
    network: UNetConfig | NetworkIO
    sha256: str
    traits: dict[str, Any] | None

    @classmethod
    def read(cls, folder: Path) -> _Card:
        properties = json.loads((folder / MODEL_FILE).read_text())["properties"]
        if "scenemask:network" in properties:
            network: UNetConfig | NetworkIO = NetworkIO.model_validate(properties["scenemask:network"])
        else:
            network = UNetConfig.model_validate(properties["scenemask:unet"])
        return cls(
            spec=ModelSpec.model_validate(properties["scenemask:model"]),
            network=network,
            sha256=str(properties["scenemask:weights_sha256"]),
            traits=properties.get(_TRAITS),
        )

    def file(self, folder: Path) -> Path:
        """The weights; a name that leaves the folder is refused as a damaged card."""
        name = self.network.file if isinstance(self.network, NetworkIO) else WEIGHTS_FILE
        if Path(name).name != name:
            msg = f"file {name!r} is not a plain name"
            raise ValueError(msg)
        return folder / name


def _load_folder(folder: Path, *, trust: bool) -> Model:
    try:
        card = _Card.read(folder)
        weights = card.file(folder)
    except FileNotFoundError as error:
        raise ModelError(
            "the folder holds no model.json",
            code="MD-001",
            title="Model cannot be read",
            where=str(folder),
            fix="give a folder written by scenemask, or a weights file",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"model.json is not a Scenemask model: {first_line(error)}",
            code="MD-001",
            title="Model cannot be read",
            where=str(folder / MODEL_FILE),
            fix="restore the file, or export the model again",
        ) from error
    network = _network(card, weights, trust=trust)
    digest = card.sha256
    if isinstance(card.network, NetworkIO):
        digest = f"{digest}:{card.network.model_dump_json()}"
    model = model_from_module(network, card.spec, digest=digest, traits=card.traits)
    return dataclasses.replace(model, path=folder)


def _network(card: _Card, weights: Path, *, trust: bool) -> nn.Module:
    state = None
    if not isinstance(card.network, NetworkIO):
        state, _ = read_weights(weights)
    if weights.is_file() and (found := sha256_of_file(weights)) != card.sha256:
        raise ModelError(
            f"the weights have SHA-256 {found[:16]}…, model.json expects {card.sha256[:16]}…",
            code="MD-001",
            title="Weights are not those of model.json",
            where=str(weights),
            fix="copy both files of the model folder again",
        )
    if state is None:
        assert isinstance(card.network, NetworkIO)
        return load_foreign(weights, card.network, trust=trust)
    assert isinstance(card.network, UNetConfig)
    return build_unet(state, card.network, where=str(weights))
