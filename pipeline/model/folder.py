"""The model folder: `model.json` (a STAC item with the Machine Learning Model extension) beside one weights file.

Source: STAC MLM extension 1.4, https://github.com/stac-extensions/mlm. Our own fields start with `scenemask:`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import ModelError
from pipeline.model.card import WEIGHTS_FILE, model_item
from pipeline.model.model import Model, model_from_module
from pipeline.model.spec import ModelSpec, Scaling, broadcast
from pipeline.model.unet import UNet, UNetConfig
from pipeline.model.weights import build_unet, read_weights, sha256_of_file, write_weights

MODEL_FILE = "model.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BareOptions:
    """What a weights file without `model.json` does not say."""

    bands: tuple[str, ...] = ()
    """Names of the input bands; `1`, `2`, … when empty."""
    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    class_names: tuple[str, ...] = ()
    """Names of the classes; `class 0`, `class 1`, … when empty."""
    activation: str | None = None
    """`softmax` for several outputs and `sigmoid` for one unless given."""
    threshold: float = 0.5

    @property
    def given(self) -> list[str]:
        """Names of the options that differ from their defaults."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]


def load_model(path: str | Path, *, bare: BareOptions | None = None) -> Model:
    """Load a model folder, or a bare weights file of our U-Net.

    Args:
        path: Folder with `model.json`, the `model.json` itself, or a weights file.
        bare: What a bare weights file does not say; refused beside a `model.json`, which says it already.

    Raises:
        ModelError: Missing, truncated, pickled, not fitting (codes MD-001 to MD-010).
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
        return _load_folder(folder)
    return _load_bare(path, bare or BareOptions())


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


def _load_folder(folder: Path) -> Model:
    where = str(folder / MODEL_FILE)
    try:
        properties = json.loads((folder / MODEL_FILE).read_text())["properties"]
        spec = ModelSpec.model_validate(properties["scenemask:model"])
        config = UNetConfig.model_validate(properties["scenemask:unet"])
        expected = properties["scenemask:weights_sha256"]
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
            f"model.json is not a Scenemask model: {_first_line(error)}",
            code="MD-001",
            title="Model cannot be read",
            where=where,
            fix="restore the file, or export the model again",
        ) from error
    weights = folder / WEIGHTS_FILE
    state, _ = read_weights(weights)
    found = sha256_of_file(weights)
    if found != expected:
        raise ModelError(
            f"the weights have SHA-256 {found[:16]}…, model.json expects {expected[:16]}…",
            code="MD-001",
            title="Weights are not those of model.json",
            where=str(weights),
            fix="copy both files of the model folder again",
        )
    network = build_unet(state, config, where=str(weights))
    model = model_from_module(network, spec, digest=found)
    return dataclasses.replace(model, path=folder)


def _load_bare(path: Path, options: BareOptions) -> Model:
    state, config = read_weights(path)
    network = build_unet(state, config, where=str(path))
    try:
        spec = _bare_spec(path, network.config, options)
    except ValidationError as error:
        raise ModelError(
            f"the options do not make a model: {_first_line(error)}",
            code="MD-003",
            title="Network and description differ",
            where=str(path),
            fix="check --class-names, --activation and --threshold",
        ) from error
    except ValueError as error:
        raise ModelError(
            f"the options do not fit the network: {error}",
            code="MD-003",
            title="Network and description differ",
            where=str(path),
            fix=f"give one value, or one for each of its {network.config.bands} bands",
        ) from error
    model = model_from_module(network, spec, digest=sha256_of_file(path))
    return dataclasses.replace(model, path=path)


def _bare_spec(path: Path, config: UNetConfig, options: BareOptions) -> ModelSpec:
    bands = config.bands
    outputs = max(config.outputs, 2)
    scaling = {name: broadcast(getattr(options, name), bands, what=name) for name in ("scale", "offset", "mean", "std")}
    return ModelSpec.model_validate(
        {
            "name": path.stem,
            "bands": options.bands or tuple(str(i + 1) for i in range(bands)),
            "classes": options.class_names or tuple(f"class {i}" for i in range(outputs)),
            "scaling": Scaling(**scaling),
            "activation": options.activation or ("sigmoid" if config.outputs == 1 else "softmax"),
            "threshold": options.threshold,
        }
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place}: {first['msg']}" if place else first["msg"]
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
