"""What the numbers in a mask mean: one frozen table that model, files and polygons share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# Okabe & Ito (2008), safe for colour-blind readers; used when a model brings no colours of its own.
_PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (120, 120, 120),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassInfo:
    """One class of a mask."""

    value: int
    """Pixel value in the mask, or number of its band from 0 where classes overlap; the index of the class in the
    network's output."""
    name: str
    """What people call it."""
    color: tuple[int, int, int]
    """Red, green, blue, 0-255."""
    background: bool = False
    """True for the class that is not polygonized unless asked for."""


_FEW = 16


@dataclass(frozen=True, slots=True)
class Legend:
    """The classes of a mask in order of their values, 0 first."""

    classes: tuple[ClassInfo, ...]
    multilabel: bool = False
    """Whether classes overlap. The mask then has a band per class: 1 where the class is, 0 where it is not."""

    def __post_init__(self) -> None:
        if [c.value for c in self.classes] != list(range(len(self.classes))):
            msg = f"class values must be 0, 1, 2, …, got {[c.value for c in self.classes]}"
            raise ValueError(msg)

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[ClassInfo]:
        return iter(self.classes)

    @property
    def nodata(self) -> int:
        """Mask value of pixels without a class: 255, or 65535 where the mask needs 16 bits."""
        return 255 if self.multilabel or len(self.classes) <= 255 else 65535  # noqa: PLR2004 - 0-254 for classes

    @property
    def dtype(self) -> str:
        """NumPy dtype of the mask."""
        return "uint8" if self.nodata == 255 else "uint16"  # noqa: PLR2004

    @property
    def background(self) -> int | None:
        """Value of the background class, None when the model names none."""
        return next((c.value for c in self.classes if c.background), None)

    @property
    def num_mask_bands(self) -> int:
        """Bands of the mask."""
        return len(self.classes) if self.multilabel else 1

    def mask_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        """Shape of the mask of an area of (height, width): `(y, x)`, or `(class, y, x)` where classes overlap."""
        return (len(self.classes), *shape) if self.multilabel else shape

    def is_valid(self, mask: NDArray[np.generic]) -> NDArray[np.bool_]:
        """`(y, x)`: True where a mask, shaped as `mask_shape` has it, is not nodata. Bands agree about that."""
        return np.asarray((mask[0] if self.multilabel else mask) != self.nodata)

    def class_px(self, mask: NDArray[np.generic]) -> NDArray[np.int64]:
        """Pixels per class, shape `(class,)`; nodata is not counted."""
        if self.multilabel:
            return np.array([np.count_nonzero(band == 1) for band in mask], np.int64)
        if len(self) <= _FEW:  # one vectorised pass per class is ten times faster than counting through int64
            return np.array([np.count_nonzero(mask == info.value) for info in self], np.int64)
        return np.bincount(mask.ravel(), minlength=len(self))[: len(self)].astype(np.int64)

    def names(self) -> dict[int, str]:
        """Value -> name."""
        return {c.value: c.name for c in self.classes}

    def colors(self) -> dict[int, tuple[int, int, int]]:
        """Value -> red, green, blue."""
        return {c.value: c.color for c in self.classes}


def default_legend(names: list[str], *, background: str | None = None) -> Legend:
    """Legend with the default palette for `names` in order; `background` names the class left out of polygons."""
    return Legend(
        tuple(
            ClassInfo(
                value=i,
                name=name,
                color=(225, 225, 225) if name == background else _PALETTE[i % len(_PALETTE)],
                background=name == background,
            )
            for i, name in enumerate(names)
        )
    )
