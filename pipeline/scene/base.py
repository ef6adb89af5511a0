"""What every input looks like once it is open: bands, blocks of pixels with their validity, and the Scene protocol."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.grid import GeoBox, Window

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""What `json.dumps` takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """One band of a scene, as its file describes it."""

    name: str
    """The file's description of the band; its number ("1", "2", …) where the file says nothing."""
    index: int
    """Number in the file, 1-based. Alpha bands keep their number but are never listed."""
    nodata: float | None
    """Value that marks a missing pixel in this band, None when there is none. NaN is possible."""
    scale: float = 1.0
    """The file's own tag: physical = stored x scale + offset. Never applied by the scene."""
    offset: float = 0.0
    """See `scale`."""
    color: str = "undefined"
    """GDAL's colour interpretation in lower case: red, green, blue, gray, nir, undefined, …"""
    described: bool = False
    """True when `name` comes from the file and is not just the number."""
    aliases: tuple[str, ...] = ()
    """Other names that it goes by: an asset's key, a common name. No other band of the scene has them."""
    truth: str = "file"
    """Where `scale` and `offset` come from: "file", or what its maker wrote beside it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """Pixels of one window, and which of them can be used.

    `valid` may be a read-only view without memory of its own: of one all-True value when nothing is masked, of one
    `(1, y, x)` plane when all bands share it. So do not write into it, and ask `all_valid` or `valid_everywhere()`
    before walking over `(band, y, x)` booleans.
    """

    data: NDArray[Any]
    """Shape `(band, y, x)`, the scene's dtype, stored values."""
    valid: NDArray[np.bool_]
    """Shape `(band, y, x)`, True = usable: not nodata, finite, alpha > 0, not masked by the dataset."""
    all_valid: bool
    """True when every element of `valid` is True."""

    def valid_everywhere(self) -> NDArray[np.bool_]:
        """Shape `(y, x)`, True where all bands are usable; read-only where it is a view of `valid`."""
        if self.all_valid or self.valid.strides[0] == 0:
            plane: NDArray[np.bool_] = self.valid[0]
            return plane
        together: NDArray[np.bool_] = np.logical_and.reduce(self.valid, axis=0)
        return together


def make_block(data: NDArray[Any], valid: NDArray[np.bool_] | None) -> Block:
    """Block from pixels and their validity in its cheapest form.

    Args:
        data: Shape `(band, y, x)`.
        valid: Shape `(band, y, x)`, or `(1, y, x)` when all bands share it, or None when nothing is masked.
    """
    if valid is None or bool(valid.all()):
        return Block(data=data, valid=np.broadcast_to(np.True_, data.shape), all_valid=True)
    return Block(data=data, valid=np.broadcast_to(valid, data.shape), all_valid=False)


class Scene(Protocol):
    """One input raster with its place on Earth: a recipe that can be pickled and read from any thread.

    Bands keep the file's order unless `select` changed it. Windows given to `read` lie inside the scene; padding is
    someone else's job.
    """

    @property
    def name(self) -> str:
        """Short name for messages and outputs."""
        ...

    @property
    def geobox(self) -> GeoBox:
        """Shape, transform and CRS."""
        ...

    @property
    def bands(self) -> tuple[Band, ...]:
        """The selected bands, in the order in which they are read."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of what `read` returns."""
        ...

    @property
    def nodata(self) -> float | None:
        """Nodata shared by all selected bands; None when there is none, or bands differ (see `Band.nodata`)."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before trusting the result, one sentence each."""
        ...

    def read(self, window: Window) -> NDArray[Any]:
        """Stored values of a window, shape `(band, y, x)`."""
        ...

    def read_block(self, window: Window) -> Block:
        """Stored values of a window with their validity."""
        ...

    def fingerprint(self) -> dict[str, Json]:
        """What makes this scene this scene, read anew at each call: equal before and after means nothing changed."""
        ...

    def select(self, bands: Sequence[str | int]) -> Scene:
        """The same scene with other bands: names, or 1-based numbers in the file, in the order wanted."""
        ...


def assert_inside(window: Window, geobox: GeoBox) -> None:
    """Our own invariant: a window asked of a scene is not empty and lies inside it."""
    height, width = geobox.shape
    inside = window.row_off >= 0 and window.col_off >= 0 and window.row_stop <= height and window.col_stop <= width
    assert inside, f"window {window} is not inside the scene of {height} x {width}"
    assert window.num_pixels > 0, f"window {window} is empty"


def shared_nodata(bands: Sequence[Band]) -> float | None:
    """The nodata value that all `bands` share, None when there is none or they differ."""
    first = bands[0].nodata
    if first is None:
        return None
    same = all(b.nodata is not None and (b.nodata == first or (b.nodata != b.nodata and first != first)) for b in bands)  # noqa: PLR0124 - NaN
    return first if same else None


def with_warning(scene: Scene, text: str) -> Scene:
    """The scene with one more warning: all kinds of scenes keep theirs in one field."""
    return cast("Scene", replace(cast("Any", scene), warnings=(*scene.warnings, text)))
