"""A scene whose values are brought to another scale while they are read: stored x gain + bias, per band, once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.scene.base import Block

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.grid import GeoBox, Window
    from pipeline.scene.base import Band, Json, Scene


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RescaledScene:
    """Another scene's pixels, as float32 in another scale; whole numbers shifted by whole numbers stay exact."""

    scene: Scene
    """What is read."""
    constants: dict[int, tuple[float, float]]
    """Number of a band -> (gain, bias)."""
    truth: str
    """Who says what the scene's values mean."""
    warnings: tuple[str, ...] = ()
    """The scene's own, and what was added."""

    @property
    def name(self) -> str:
        """The scene's."""
        return self.scene.name

    @property
    def path(self) -> str | None:
        """The scene's."""
        return getattr(self.scene, "path", None)

    @property
    def geobox(self) -> GeoBox:
        """The scene's."""
        return self.scene.geobox

    @property
    def bands(self) -> tuple[Band, ...]:
        """The scene's, as it stores them."""
        return self.scene.bands

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, whatever is stored."""
        return np.dtype(np.float32)

    @property
    def nodata(self) -> float | None:
        """None: validity is decided on stored values."""
        return None

    def read(self, window: Window) -> NDArray[Any]:
        """Values of a window in the new scale, shape `(band, y, x)`."""
        return self._scaled(self.scene.read(window))

    def read_block(self, window: Window) -> Block:
        """Values of a window in the new scale, with the scene's validity."""
        block = self.scene.read_block(window)
        return Block(data=self._scaled(block.data), valid=block.valid, all_valid=block.all_valid)

    def fingerprint(self) -> dict[str, Json]:
        """The scene's, with the constants."""
        return {**self.scene.fingerprint(), "values": [list(self.constants[band.index]) for band in self.bands]}

    def select(self, bands: Sequence[str | int]) -> RescaledScene:
        """The same with other bands."""
        return replace(self, scene=self.scene.select(bands))

    def describe(self) -> dict[str, Json]:
        """What is done to values, for `run.json`."""
        return {
            "truth": self.truth,
            "bands": [
                {"band": band.name, "gain": self.constants[band.index][0], "bias": self.constants[band.index][1]}
                for band in self.bands
            ],
        }

    def _scaled(self, data: NDArray[Any]) -> NDArray[Any]:
        scaled = np.empty(data.shape, np.float32)
        for plane, stored, band in zip(scaled, data, self.bands, strict=True):
            gain, bias = self.constants[band.index]
            plane[:] = stored * np.float64(gain) + bias
        return scaled
