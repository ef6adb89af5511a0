"""What a network was measured to do: stride, halo, sizes. A frozen value and its place in the user's cache."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.grid import SizeRule


class Traits(BaseModel):
    """Measured by `pipeline.model.probe`; decides how a scene may be tiled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stride: int
    """Output stride: shifting the input by this many pixels shifts the output alike. 1 where no shift does."""
    halo_px: int | None
    """How far the inputs of a stride x stride block of outputs reach beyond it, rounded up to a multiple of the
    stride; None when every output depends on the whole patch."""
    margin_px: int
    """Pixels dropped on each side (valid padding)."""
    size_multiple: int
    """Sides are `size_remainder` modulo this."""
    size_remainder: int
    """See `size_multiple`."""
    size_smallest: int
    """Smallest side that was seen to work."""
    equivariant: bool
    """A crop of a large forward equals the forward of a crop, beyond the halo."""
    deterministic: bool
    """Two forwards of the same input are equal."""
    tiling: Literal["exact", "blend"]
    """What these measurements allow."""
    reason: str
    """One sentence: why exact, or why not."""
    bytes_per_px: float
    """Peak of live tensors during a forward pass, per input pixel, float32."""
    evidence: dict[str, Any] = {}
    """The numbers behind the above."""

    @property
    def sizes(self) -> SizeRule:
        """Sides that the network takes."""
        return SizeRule(multiple=self.size_multiple, remainder=self.size_remainder, smallest=max(1, self.size_smallest))


def cache_folder() -> Path:
    """The user's cache: `$XDG_CACHE_HOME/scenemask` or `~/.cache/scenemask`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "scenemask"


def load_traits(key: str) -> Traits | None:
    """Cached traits of the weights with this digest, or None."""
    try:
        return Traits.model_validate_json(_path(key).read_text())
    except (OSError, ValidationError, ValueError):
        return None


def save_traits(key: str, traits: Traits) -> None:
    """Remember traits for the next run; a cache that cannot be written is no failure."""
    path = _path(key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            json.dump(traits.model_dump(mode="json"), file, indent=1)
        Path(name).replace(path)


def _path(key: str) -> Path:
    return cache_folder() / "traits" / f"{key}.json"
