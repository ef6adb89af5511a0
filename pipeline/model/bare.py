"""A network file without `model.json`: what the file does not say comes from options."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pydantic import ValidationError

from pipeline.errors import ModelError
from pipeline.model.foreign import SUFFIXES, NetworkIO, load_foreign
from pipeline.model.model import Model, model_from_module
from pipeline.model.probe import count_outputs
from pipeline.model.spec import ModelSpec, Scaling, broadcast
from pipeline.model.weights import build_unet, program_kind, read_weights, sha256_of_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from pipeline.model.foreign import Format


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
    """`softmax` for several outputs, `sigmoid` for one and with `multilabel`, unless given."""
    threshold: tuple[float, ...] = (0.5,)
    multilabel: bool = False

    @property
    def given(self) -> list[str]:
        """Names of the options that differ from their defaults."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]


def program_format(path: Path) -> Format:
    """What kind of file holds a network that is not ours.

    Raises:
        ModelError: MD-001, none that is known.
    """
    found = _foreign_format(path)
    if found is None:
        raise ModelError(
            f"{path.name} is neither ONNX nor TorchScript nor torch.export",
            code="MD-001",
            title="Weights cannot be read",
            where=str(path),
            fix="give an .onnx, .pt2 or TorchScript file; weights of our own U-Net go to save_model",
        )
    return found


def load_bare(path: Path, options: BareOptions, *, trust: bool) -> Model:
    """A model from a file alone; see `load_model`."""
    form = _foreign_format(path)
    if form is not None:
        io_spec = NetworkIO(file=path.name, format=form)
        network: nn.Module = load_foreign(path, io_spec, trust=trust)
        digest = f"{sha256_of_file(path)}:{io_spec.model_dump_json()}"
        bands, outputs = _count_channels(network, options)
    else:
        state, config = read_weights(path)
        unet = network = build_unet(state, config, where=str(path))
        digest = sha256_of_file(path)
        bands, outputs = unet.config.bands, unet.config.outputs
    model = model_from_module(network, _spec(path, bands, outputs, options), digest=digest)
    return dataclasses.replace(model, path=path)


def _foreign_format(path: Path) -> Format | None:
    """By suffix; a `.pt` file by what it holds."""
    if path.suffix in SUFFIXES:
        return SUFFIXES[path.suffix]
    return program_kind(path) if path.is_file() else None


def _count_channels(network: nn.Module, options: BareOptions) -> tuple[int, int]:
    """(bands, output channels) of a network: what the file or the options say, and one forward."""
    bands = getattr(network, "bands", None) or len(options.bands)
    bands = bands or max(len(getattr(options, name)) for name in ("scale", "offset", "mean", "std"))
    return bands, count_outputs(network, bands=bands)


def _spec(path: Path, bands: int, outputs: int, options: BareOptions) -> ModelSpec:
    try:
        return _unchecked_spec(path, bands, outputs, options)
    except ValidationError as error:
        raise ModelError(
            f"the options do not make a model: {first_line(error)}",
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
            fix=f"give one value, or one for each of its {bands} bands",
        ) from error


def _unchecked_spec(path: Path, bands: int, outputs: int, options: BareOptions) -> ModelSpec:
    scaling = {name: broadcast(getattr(options, name), bands, what=name) for name in ("scale", "offset", "mean", "std")}
    return ModelSpec.model_validate(
        {
            "name": path.stem,
            "bands": options.bands or tuple(str(i + 1) for i in range(bands)),
            "classes": options.class_names
            or tuple(f"class {i}" for i in range(outputs if options.multilabel else max(outputs, 2))),
            "scaling": Scaling(**scaling),
            "activation": options.activation or ("sigmoid" if outputs == 1 or options.multilabel else "softmax"),
            "outputs": 1 if outputs == 1 and options.activation == "none" else None,
            "multilabel": options.multilabel,
            "threshold": options.threshold if len(options.threshold) > 1 else options.threshold[0],
        }
    )


def first_line(error: Exception) -> str:
    """The first thing that is wrong, in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
