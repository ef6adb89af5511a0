"""Where a result is wanted: an area of interest, a quality layer. Limits the output and never the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.grid import Window
    from pipeline.scene.aoi import Aoi
    from pipeline.scene.quality import QualityLayer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Limits:
    """What takes pixels out of the result; picklable. A tile that it takes out whole is neither read nor computed."""

    aoi: Aoi | None = None
    """Polygons in which a result is wanted."""
    layer: QualityLayer | None = None
    """Class numbers of pixels for which none is wanted."""

    def mask(self, window: Window) -> NDArray[np.bool_] | None:
        """Shape `(y, x)`, True where a result is wanted; None where nothing limits it.

        Raises:
            InputError: IN-005, IN-015 the layer cannot be read, or has changed.
        """
        wanted = None if self.aoi is None else self.aoi.mask(window)
        if self.layer is None or (wanted is not None and not wanted.any()):
            return wanted
        clear = self.layer.mask(window)
        return clear if wanted is None else wanted & clear

    def identity(self) -> dict[str, str | None]:
        """Digests of both, under the names of their settings."""
        return {
            "aoi": None if self.aoi is None else self.aoi.digest(),
            "mask_layer": None if self.layer is None else self.layer.digest(),
        }

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know, one sentence each."""
        return () if self.layer is None else self.layer.warnings
