"""What a network was measured to do: stride, halo, sizes. A frozen value and its place in the user's cache."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.grid import SizeRule
from pipeline.model.cache import cache_folder, write_cached

if TYPE_CHECKING:
    from pathlib import Path


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
    size_largest: int | None = None
    """The only side, for networks with a fixed input size; None where larger ones work too."""
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
        return SizeRule(
            multiple=self.size_multiple,
            remainder=self.size_remainder,
            smallest=max(1, self.size_smallest),
            largest=self.size_largest,
        )


def load_traits(key: str) -> Traits | None:
    """Cached traits of the weights with this digest, or None."""
    try:
        return Traits.model_validate_json(_path(key).read_text())
    except (OSError, ValidationError, ValueError):
        return None


def save_traits(key: str, traits: Traits) -> None:
    """Remember traits for the next run; a cache that cannot be written is no failure."""
    write_cached(_path(key), json.dumps(traits.model_dump(mode="json"), indent=1))


def _path(key: str) -> Path:
    return cache_folder() / "traits" / f"{key}.json"
