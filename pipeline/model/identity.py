"""What a network is, as one digest: its tensors and how they are used."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.model.unet import UNet

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_MODULE_FIELDS = frozenset(vars(nn.Module()))


def network_digest(network: nn.Module, *, weights: str | None = None) -> str:
    """SHA-256 of a network, hex.

    Args:
        network: Any module.
        weights: Identity that is known already, such as the digest of the weights file; a U-Net's configuration is
            added to it. None: hash every tensor, and the structure as far as it can be seen: kinds of layers, their
            constants, their order. Code is not seen, so two modules with equal digests may still compute differently.
    """
    digest = hashlib.sha256()
    if weights is not None:
        digest.update(weights.encode())
    else:
        _add_structure(digest, network)
        _add_tensors(digest, network)
    if isinstance(network, UNet):
        digest.update(network.config.model_dump_json().encode())
    return digest.hexdigest()


def _add_structure(digest: Any, network: nn.Module) -> None:
    digest.update(_ADDRESS.sub("", repr(network)).encode())
    for name, module in network.named_modules():
        kind = type(module)
        digest.update(f"{name}:{kind.__module__}.{kind.__qualname__}:{_constants(module)};".encode())


def _constants(module: nn.Module) -> str:
    """Plain attributes, which `repr` may leave out (that of `Upsample` does not name `align_corners`)."""
    own = sorted((name, value) for name, value in vars(module).items() if name not in _MODULE_FIELDS)
    return repr([(name, value) for name, value in own if _is_plain(value)])


def _is_plain(value: object) -> bool:
    """True for values whose text says all about them and is the same in every process."""
    if isinstance(value, tuple | list):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | complex | str | bytes)


def _add_tensors(digest: Any, network: nn.Module) -> None:
    """Parameters and buffers, those that `state_dict` leaves out too."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(_bytes(tensor))


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
