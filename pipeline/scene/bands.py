"""What bands are called: common names, the numbers of Sentinel-2 and Landsat, and wavelengths."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.scene.base import Band

SENTINEL2 = {
    "B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge1", "B06": "rededge2",
    "B07": "rededge3", "B08": "nir", "B8A": "nir08", "B09": "nir09", "B10": "cirrus", "B11": "swir16", "B12": "swir22",
}  # fmt: skip
"""Band -> STAC common name, in the order of the band numbers in metadata; the three red edges and the narrow
infrareds are numbered as in catalogues."""
LANDSAT = {
    "8": {"1": "coastal", "2": "blue", "3": "green", "4": "red", "5": "nir", "6": "swir16", "7": "swir22", "8": "pan",
          "9": "cirrus", "10": "lwir11", "11": "lwir12"},
    "7": {"1": "blue", "2": "green", "3": "red", "4": "nir", "5": "swir16", "6": "lwir", "7": "swir22", "8": "pan"},
}  # fmt: skip
"""Band -> common name, of Landsat 8 and 9, and of those before."""
_WAVELENGTHS_UM = {
    "coastal": (0.40, 0.45), "blue": (0.45, 0.53), "green": (0.53, 0.60), "red": (0.62, 0.69), "rededge1": (0.69, 0.72),
    "rededge2": (0.72, 0.76), "rededge3": (0.76, 0.80), "nir": (0.80, 0.855), "nir08": (0.855, 0.90),
    "nir09": (0.93, 0.96), "cirrus": (1.35, 1.40), "swir16": (1.55, 1.75), "swir22": (2.08, 2.35),
    "lwir": (10.0, 12.6),
}  # fmt: skip
"""Common name -> range of the centre. Source: STAC eo extension 2.0, with the narrow bands of Sentinel-2 apart."""


def color_of(common: str | None) -> str:
    """GDAL's colour interpretation of a band with such a common name."""
    return common if common in {"red", "green", "blue"} else "undefined"


def name_of_wavelength(centre_um: float) -> str | None:
    """Common name of a band whose centre lies there; None between them."""
    for name, (low, high) in _WAVELENGTHS_UM.items():
        if low <= centre_um < high:
            return name
    return None


def without_shared_names(bands: Sequence[Band]) -> list[Band]:
    """The bands with those aliases that no other one of them has, as an alias or as its name."""
    counts = Counter(name.casefold() for band in bands for name in {band.name.casefold(), *_lower(band.aliases)})
    return [
        replace(
            band,
            aliases=tuple(
                dict.fromkeys(
                    a for a in band.aliases if counts[a.casefold()] == 1 and a.casefold() != band.name.casefold()
                )
            ),
        )
        for band in bands
    ]


def _lower(names: Sequence[str]) -> set[str]:
    return {name.casefold() for name in names}
