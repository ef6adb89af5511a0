"""A model: what it expects, what it was measured to do, and its network made ready for one device."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.errors import ModelError
from pipeline.model.probe import probe
from pipeline.model.traits import Traits, load_traits, save_traits
from pipeline.model.unet import UNet

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.model.spec import ModelSpec

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """A network with its contract. Picklable; the network stays on the CPU until `prepare`.

    `network` maps `(batch, band, y, x)` float32 to `(batch, class, y', x')`.
    """

    spec: ModelSpec
    """Bands, scaling, classes."""
    network: nn.Module
    """In eval mode, float32, on the CPU."""
    digest: str
    """SHA-256 over weights and semantic fields, hex: the model's identity."""
    path: Path | None = None
    """Where it was loaded from; None for a module handed over in Python."""
    _traits: list[Traits] = field(default_factory=list, repr=False)

    @property
    def traits(self) -> Traits:
        """Measured on first use, then taken from the user's cache."""
        if not self._traits:
            key = hashlib.sha256(f"{_PROBE_VERSION}:{self.digest}".encode()).hexdigest()
            traits = load_traits(key)
            if traits is None:
                traits = probe(self.network, bands=len(self.spec.bands))
                save_traits(key, traits)
            self._traits.append(traits)
        return self._traits[0]

    def prepare(self, device: torch.device) -> nn.Module:
        """A copy ready for inference: batch norm folded into convolutions, channels last, on `device`."""
        network = fold_batch_norm(copy.deepcopy(self.network))
        ready: nn.Module = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return ready.eval()


_PROBE_VERSION = 1
"""Raise when the probe measures something else, so that cached traits are measured again."""


def model_from_module(network: nn.Module, spec: ModelSpec, *, digest: str | None = None) -> Model:
    """A model around any `nn.Module` that maps images to logits or probabilities.

    Args:
        network: Input `(batch, band, y, x)` float32, output `(batch, class, y, x)`.
        spec: What it expects and gives.
        digest: Identity of the weights; hashed from the state dict when None.

    Raises:
        ModelError: MD-003 when the number of output channels is not the one that `spec` needs.
    """
    network = network.eval().requires_grad_(requires_grad=False)
    weights = digest or _hash_state(network)
    identity = hashlib.sha256(f"{weights}:{spec.digest()}".encode()).hexdigest()
    model = Model(spec=spec, network=network, digest=identity)
    _check_outputs(model)
    return model


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """Replace each convolution followed by batch norm in a Sequential by one convolution. In eval mode only."""
    for child in module.children():
        fold_batch_norm(child)
    if isinstance(module, nn.Sequential):
        for index in range(len(module) - 1):
            conv, norm = module[index], module[index + 1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[index] = fuse_conv_bn_eval(conv, norm)
                module[index + 1] = nn.Identity()
    return module


def _check_outputs(model: Model) -> None:
    """One dry forward on a small patch: does the network put out what the spec declares?"""
    config = model.network.config if isinstance(model.network, UNet) else None
    if config is not None:
        channels, bands = config.outputs, config.bands
        if bands != len(model.spec.bands):
            _refuse_count("input bands", bands, len(model.spec.bands), list(model.spec.bands))
    else:
        side = model.traits.sizes.at_least(64)
        with torch.inference_mode():
            channels = int(model.network(torch.zeros(1, len(model.spec.bands), side, side)).shape[1])
    if channels != model.spec.num_outputs:
        _refuse_count("output channels", channels, model.spec.num_outputs, list(model.spec.classes))


def _refuse_count(what: str, got: int, expected: int, names: list[str]) -> None:
    raise ModelError(
        f"the network has {got} {what}, its description needs {expected} ({', '.join(names)})",
        code="MD-003",
        title="Network and description differ",
        fix="correct bands, classes or activation in model.json (or --bands, --class-names, --activation)",
    )


def _hash_state(network: nn.Module) -> str:
    digest = hashlib.sha256(type(network).__qualname__.encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
