"""Reading weights without running anybody's code: safetensors, and state dicts under `weights_only`."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from typing import TYPE_CHECKING, Literal, NoReturn

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.errors import ModelError
from pipeline.model.unet import CONFIG_KEY, Norm, UNet, UNetConfig

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

STATE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
_SHOWN = 5


def read_weights(path: Path) -> tuple[dict[str, Tensor], UNetConfig | None]:
    """Tensors by name, and the U-Net's configuration where the file carries one.

    Raises:
        ModelError: MD-001 missing, truncated or not a weights file; MD-002 holds pickled code.
    """
    if not path.is_file():
        _refuse(path, "no such file", fix="check the path of -m/--model")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in STATE_SUFFIXES:
        return _read_state_dict(path)
    return _refuse(path, f"the suffix {path.suffix!r} is not one of .safetensors, {', '.join(STATE_SUFFIXES)}")


def write_weights(path: Path, network: UNet) -> None:
    """Save a U-Net's weights with its configuration in the header."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, path, metadata={CONFIG_KEY: network.config.model_dump_json()})


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_unet(state: dict[str, Tensor], config: UNetConfig | None, *, where: str) -> UNet:
    """A U-Net with these weights, strictly: every key must fit.

    Args:
        state: Tensors by name.
        config: The architecture. When None, it is read off the tensors' names and shapes, which do not tell `valid`
            padding from `same`: `same` is assumed.
        where: File named in errors.

    Raises:
        ModelError: MD-004 with the first differences, or with what the tensors do not tell.
    """
    network = UNet(config or _infer_config(state, where=where))
    expected = network.state_dict()
    differences = [f"missing {name}" for name in expected if name not in state]
    differences += [f"unexpected {name}" for name in state if name not in expected]
    differences += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if differences:
        more = f" (and {len(differences) - _SHOWN} more)" if len(differences) > _SHOWN else ""
        raise ModelError(
            "weights do not fit the U-Net: " + "; ".join(differences[:_SHOWN]) + more,
            code="MD-004",
            title="Weights do not fit the network",
            where=where,
            fix="use the model.json that was written with these weights, or export them again",
        )
    network.load_state_dict(state)
    return network


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], UNetConfig | None]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        _refuse(path, f"not a whole safetensors file ({error})", cause=error)
    return state, _parse_config(metadata.get(CONFIG_KEY), path)


def _parse_config(text: object, path: Path) -> UNetConfig | None:
    if text is None:
        return None
    try:
        return UNetConfig.model_validate(json.loads(str(text)))
    except (ValidationError, ValueError) as error:
        _refuse(
            path, f"the U-Net's configuration inside is not valid ({str(error).partition(chr(10))[0]})", cause=error
        )


def _read_state_dict(path: Path) -> tuple[dict[str, Tensor], UNetConfig | None]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Never a second attempt without weights_only: that is how malicious checkpoints get in.
        raise ModelError(
            "the file holds pickled Python objects, not only tensors; loading it would run its code",
            code="MD-002",
            title="Pickled module refused",
            where=str(path),
            fix="save the weights alone: torch.save(network.state_dict(), ...) or safetensors",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        _refuse(path, f"not a whole PyTorch file ({reason})", cause=error)
    if not isinstance(loaded, dict) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        _refuse(path, "holds something else than a state dict (tensors by name)")
    # Written by the network itself; lost where somebody rebuilt the dictionary.
    metadata = getattr(loaded, "_metadata", None)
    root = metadata.get("") if isinstance(metadata, dict) else None
    return loaded, _parse_config(root.get(CONFIG_KEY) if isinstance(root, dict) else None, path)


def program_kind(path: Path) -> Literal["torchscript", "pt2"] | None:
    """Which kind of program a `.pt` file holds; None for anything else, state dicts included."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(2) == b"PK":  # a zip archive whose end is missing
                _refuse(path, "the file is cut off")
        return None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("serialized_exported_program.json") or "/models/" in name for name in names):
        return "pt2"
    return "torchscript" if any("/code/" in name or name.endswith("constants.pkl") for name in names) else None


def _infer_config(state: dict[str, Tensor], *, where: str) -> UNetConfig:
    """The architecture that these names and shapes belong to.

    Transposed up-sampling and batch norm (or none) leave names of their own. Bilinear and nearest up-sampling leave
    equal ones, so do group and instance norm: those are refused, not guessed. `valid` padding leaves no trace, so
    `same` is assumed.
    """
    try:
        first, head = state["encoder.0.0.weight"], state["head.weight"]
        width = int(first.shape[0])
        depth = len({name.split(".")[1] for name in state if name.startswith("encoder.")})
        last = state[f"decoder.{depth - 1}.0.weight"]
        _refuse_ambiguous(state, where)
        norm: Norm = "batch" if "encoder.0.1.running_mean" in state else "none"
        return UNetConfig(
            bands=int(first.shape[1]),
            outputs=int(head.shape[0]),
            depth=depth,
            width=width,
            norm=norm,
            upsampling="transposed",
            skips=int(last.shape[1]) == 2 * width,
        )
    except (KeyError, IndexError, ValidationError) as error:
        raise ModelError(
            f"the tensors are not those of a Scenemask U-Net (no {error})",
            code="MD-004",
            title="Weights do not fit the network",
            where=where,
            fix="use a model folder with model.json, or weights saved by scenemask",
        ) from error


def _refuse_ambiguous(state: dict[str, Tensor], where: str) -> None:
    open_questions = []
    if "up.0.weight" not in state:
        open_questions.append("bilinear from nearest up-sampling")
    if "encoder.0.1.weight" in state and "encoder.0.1.running_mean" not in state:
        open_questions.append("group from instance normalisation")
    if open_questions:
        raise ModelError(
            f"the tensors alone do not tell {' and '.join(open_questions)}, and the file carries no configuration",
            code="MD-004",
            title="Weights do not say which network",
            where=where,
            fix="use the .safetensors or the model folder that save_model wrote, or torch.save(network.state_dict(), "
            "...) of the U-Net as it is",
        )


def _refuse(
    path: Path, why: str, *, fix: str = "copy or export the file again", cause: Exception | None = None
) -> NoReturn:
    raise ModelError(
        f"cannot read the weights: {why}", code="MD-001", title="Weights cannot be read", where=str(path), fix=fix
    ) from cause
