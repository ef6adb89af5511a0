"""What an item or a folder offers before anything of it is opened: bands by name, each in some file.

Only files whose bands are asked for are opened; a product on a server has dozens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from pipeline.errors import InputError
from pipeline.scene.bands import without_shared_names
from pipeline.scene.crs import same_wkt
from pipeline.scene.select import select_bands
from pipeline.scene.sources import Part, SourcesScene

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pipeline.grid import GeoBox
    from pipeline.scene.base import Band, Json, Scene

    Opener: TypeAlias = Callable[[str, float | None], Scene]
    """Opens a file by path or address; the number is its nodata, where whoever made the product says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One band, and where it is."""

    band: Band
    """Its names, scale and offset; `index` is its number among the product's bands."""
    href: str
    """File: path or address."""
    number: int = 1
    """Band of the file, 1-based."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """An item or a folder, read as far as its metadata go."""

    name: str
    path: str
    """Where it was found."""
    kind: str
    """For people: "STAC item", …"""
    offers: tuple[Offer, ...]
    """Bands of measurements."""
    layers: tuple[Offer, ...] = ()
    """What describes the pixels, such as SCL or QA_PIXEL; never given to a network."""
    chosen: tuple[int, ...] | None = None
    """Numbers of the bands that are wanted, in order; all of them if None."""
    facts: Mapping[str, Json] = field(default_factory=dict)
    """What else its metadata say, for `inspect`."""

    @property
    def bands(self) -> tuple[Band, ...]:
        """Those that are wanted."""
        by_number = {offer.band.index: offer.band for offer in self.offers}
        return tuple(by_number[n] for n in self.chosen or by_number)

    def select(self, bands: Sequence[str | int]) -> Product:
        """The same product with other bands.

        Raises:
            InputError: IN-011, unknown or ambiguous band.
        """
        known = [offer.band for offer in self.offers]
        return replace(self, chosen=tuple(band.index for band in select_bands(known, bands, where=self.path)))

    def open(self, opener: Opener, *, resampling: str = "auto", any_grid: bool = False) -> SourcesScene:
        """Open the files that the wanted bands are in.

        Args:
            opener: Opens one.
            resampling: Kernel of bands that have other pixels than the grid; `auto` if not given.
            any_grid: Whether a grid is given elsewhere, so that theirs need not cover the same ground.

        Raises:
            InputError: IN-051, they lie elsewhere or have another CRS; and what `opener` raises.
        """
        wanted = self.bands
        numbers = {band.index for band in wanted}
        by_file: dict[str, list[Offer]] = {}
        for offer in self.offers:
            if offer.band.index in numbers:
                by_file.setdefault(offer.href, []).append(offer)
        parts, found = [], {}
        for href, offers in by_file.items():
            scene = opener(href, offers[0].band.nodata)
            scene = scene.select([offer.number for offer in offers])
            parts.append(Part(scene=scene, numbers=tuple(offer.band.index for offer in offers)))
            for offer, own in zip(offers, scene.bands, strict=True):
                found[offer.band.index] = _merged(offer.band, own)
        if not any_grid:
            _refuse_elsewhere(parts, self.path)
        scene = SourcesScene(
            name=self.name,
            path=self.path,
            kind=self.kind,
            parts=tuple(parts),
            all_bands=tuple(found[n] for n in sorted(found)),
            bands=tuple(found[band.index] for band in wanted),
            geobox=finest(parts),
            resampling=resampling,
            native=finest,
            warnings=tuple(dict.fromkeys(text for part in parts for text in part.scene.warnings)),
            layers=self._layers(),
            facts=self.facts,
        )
        return scene.on_grid(scene.geobox)

    def _layers(self) -> dict[str, str]:
        """By every name that they go by; of one name the first."""
        found: dict[str, str] = {}
        for layer in self.layers:
            for name in (layer.band.name, *layer.band.aliases):
                if layer.number == 1:
                    found.setdefault(name.casefold(), layer.href)
        return found


def numbered(offers: Sequence[Offer]) -> tuple[Offer, ...]:
    """The offers with their bands numbered from 1, and with names that are no one else's."""
    bands = without_shared_names([offer.band for offer in offers])
    return tuple(
        replace(offer, band=replace(band, index=k))
        for k, (offer, band) in enumerate(zip(offers, bands, strict=True), 1)
    )


def to_float(text: str | None) -> float | None:
    """A number in metadata; None where there is none."""
    try:
        return float(text or "")
    except ValueError:
        return None


def _merged(told: Band, own: Band) -> Band:
    """What the product says of a band, and what only its file does; of scale and offset one source, never both."""
    nodata = own.nodata if told.nodata is None else told.nodata
    if told.truth == "file":
        return replace(told, nodata=nodata, scale=own.scale, offset=own.offset)
    return replace(told, nodata=nodata)


def finest(parts: Sequence[Part]) -> GeoBox:
    """Grid of the part with the smallest pixels, the first of several."""
    return min((part.scene.geobox for part in parts), key=lambda box: box.pixel_area)


def _refuse_elsewhere(parts: Sequence[Part], where: str) -> None:
    """Bands of one scene show the same ground: corners agree within a pixel of the coarser one."""
    grid = finest(parts)
    for part in parts:
        box = part.scene.geobox
        if not same_wkt(box.crs_wkt, grid.crs_wkt):
            what = "has another CRS"
        else:
            step = max(*box.pixel_size, *grid.pixel_size)
            gaps = [
                max(abs(a - c), abs(b - d)) for (a, b), (c, d) in zip(box.corners_xy(), grid.corners_xy(), strict=True)
            ]
            if max(gaps) <= step:
                continue
            what = f"has corners up to {max(gaps):.6g} units away"
        raise InputError(
            f"{part.scene.name} {what} from the other bands of the scene, expected the same ground",
            code="IN-051",
            title="Bands do not lie together",
            where=where,
            fix="say which grid counts with --align FILE or --crs EPSG:xxxx",
        )
