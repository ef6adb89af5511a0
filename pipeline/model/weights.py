"""Reading weights without running anybody's code: safetensors, and state dicts under `weights_only`."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from typing import TYPE_CHECKING, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.errors import ModelError
from pipeline.model.unet import Norm, UNet, UNetConfig

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

STATE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
_CONFIG_KEY = "scenemask:unet"
_SHOWN = 5


def read_weights(path: Path) -> tuple[dict[str, Tensor], UNetConfig | None]:
    """Tensors by name, and the U-Net's configuration where the file carries one.

    Raises:
        ModelError: MD-001 missing, truncated or not a weights file; MD-002 holds pickled code; MD-008 is a program.
    """
    if not path.is_file():
        _refuse(path, "no such file", fix="check the path of -m/--model")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in STATE_SUFFIXES:
        return _read_state_dict(path), None
    return _refuse(path, f"the suffix {path.suffix!r} is not one of .safetensors, {', '.join(STATE_SUFFIXES)}")


def write_weights(path: Path, network: UNet) -> None:
    """Save a U-Net's weights with its configuration in the header."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, path, metadata={_CONFIG_KEY: network.config.model_dump_json()})


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_unet(state: dict[str, Tensor], config: UNetConfig | None, *, where: str) -> UNet:
    """A U-Net with these weights, strictly: every key must fit.

    Args:
        state: Tensors by name.
        config: The architecture; read off the tensors' shapes when None.
        where: File named in errors.

    Raises:
        ModelError: MD-004 with the first differences.
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
    config = metadata.get(_CONFIG_KEY)
    return state, UNetConfig.model_validate(json.loads(config)) if config else None


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    if _is_program(path):
        raise ModelError(
            "the file is a TorchScript or torch.export program, which can run any code; expected a state dict",
            code="MD-008",
            title="Model is a program",
            where=str(path),
            fix="save network.state_dict() of a Scenemask U-Net, or use its .safetensors",
        )
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
    return loaded


def _is_program(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(2) == b"PK":  # a zip archive whose end is missing
                _refuse(path, "the file is cut off")
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(
        "/code/" in name or name.endswith(("constants.pkl", "serialized_exported_program.json")) for name in names
    )


def _infer_config(state: dict[str, Tensor], *, where: str) -> UNetConfig:
    """The architecture that these shapes belong to; `valid` padding leaves no trace, so `same` is assumed."""
    try:
        first = state["encoder.0.0.weight"]
        head = state["head.weight"]
        width = int(first.shape[0])
        depth = len({name.split(".")[1] for name in state if name.startswith("encoder.")})
        last = state[f"decoder.{depth - 1}.0.weight"]
        transposed = "up.0.weight" in state
        norm: Norm = (
            "batch" if "encoder.0.1.running_mean" in state else "group" if "encoder.0.1.weight" in state else "none"
        )
        return UNetConfig(
            bands=int(first.shape[1]),
            outputs=int(head.shape[0]),
            depth=depth,
            width=width,
            norm=norm,
            upsampling="transposed" if transposed else "bilinear",
            skips=int(last.shape[1]) == 2 * width,
        )
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(
            f"the tensors are not those of a Scenemask U-Net (no {error})",
            code="MD-004",
            title="Weights do not fit the network",
            where=where,
            fix="use a model folder with model.json, or weights saved by scenemask",
        ) from error


def _refuse(
    path: Path, why: str, *, fix: str = "copy or export the file again", cause: Exception | None = None
) -> NoReturn:
    raise ModelError(
        f"cannot read the weights: {why}", code="MD-001", title="Weights cannot be read", where=str(path), fix=fix
    ) from cause
