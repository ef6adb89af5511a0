"""A model: what it expects, what it was measured to do, and its network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.model.foreign import OnnxNetwork
from pipeline.model.identity import network_digest
from pipeline.model.outputs import output_warning
from pipeline.model.probe import probe
from pipeline.model.traits import Traits, load_traits, save_traits
from pipeline.model.unet import UNet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.model.spec import ModelSpec


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False)
class Model:
    """A network with its contract. Picklable; the network stays on the CPU; `make_engine` gets it ready to run.

    `network` maps `(batch, band, y, x)` float32 to `(batch, class, y', x')`.
    """

    spec: ModelSpec
    """Bands, scaling, classes."""
    network: nn.Module
    """In eval mode, float32, on the CPU."""
    digest: str
    """SHA-256 over network and semantic fields, hex: the model's identity."""
    path: Path | None = None
    """Where it was loaded from; None for a module handed over in Python."""
    cacheable: bool = True
    """Whether the digest says all that decides the traits. False for code that only its author knows: the traits are
    then measured once per `Model`, and never taken from a network that looks the same."""
    _traits: list[Traits] = field(default_factory=list, repr=False)

    @property
    def traits(self) -> Traits:
        """Measured on first use, then taken from the user's cache where `cacheable`."""
        if not self._traits:
            self._traits.append(self._cached_traits() if self.cacheable else self._measured_traits())
        return self._traits[0]

    @property
    def traits_key(self) -> str:
        """What cached traits are kept under: the model and the way they are measured."""
        return hashlib.sha256(f"{_PROBE_VERSION}:{self.digest}".encode()).hexdigest()

    @property
    def warnings(self) -> list[str]:
        """What a person should know before trusting the results, one sentence each."""
        found = output_warning(self.spec, self.traits.evidence.get("output_range"))
        return [] if found is None else [found]

    def _cached_traits(self) -> Traits:
        traits = load_traits(self.traits_key)
        if traits is None:
            traits = self._measured_traits()
            save_traits(self.traits_key, traits)
        return traits

    def _measured_traits(self) -> Traits:
        try:
            return probe(self.network, bands=len(self.spec.bands))
        finally:
            if isinstance(self.network, OnnxNetwork):
                self.network.release()


_PROBE_VERSION = 6
"""Raise when the probe measures something else, so that cached traits are measured again."""


def model_from_module(
    network: nn.Module, spec: ModelSpec, *, digest: str | None = None, traits: Mapping[str, Any] | None = None
) -> Model:
    """A model around any `nn.Module` that maps images to logits or probabilities.

    Args:
        network: Input `(batch, band, y, x)` float32, output `(batch, class, y, x)`.
        spec: What it expects and gives.
        digest: Identity of the network that you vouch for, code included: traits are cached under it. When None,
            tensors and structure are hashed, and the traits of anything but a `UNet` are measured anew each time.
        traits: What was measured of it before, with the `traits_key` as `key`; measured anew where that differs.

    Raises:
        ModelError: MD-003 when the number of output channels is not the one that `spec` needs.
    """
    network = network.eval().requires_grad_(requires_grad=False)
    identity = hashlib.sha256(f"{network_digest(network, weights=digest)}:{spec.digest()}".encode()).hexdigest()
    known = digest is not None or type(network) is UNet
    model = Model(spec=spec, network=network, digest=identity, cacheable=known)
    if traits is not None and traits.get("key") == model.traits_key:
        model._traits.append(Traits.model_validate({k: v for k, v in traits.items() if k != "key"}))  # noqa: SLF001
    _check_outputs(model)
    return model


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
