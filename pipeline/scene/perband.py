"""A folder of rasters that nobody describes: one file per band where their names say so, else files side by side."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pipeline.scene.bands import SENTINEL2
from pipeline.scene.base import Band
from pipeline.scene.product import Offer, Product, numbered

if TYPE_CHECKING:
    from pipeline.scene.folder import Folder

_SUFFIXES = (".tif", ".tiff", ".jp2")
_WORDS = "coastal|blue|green|red|rededge[1-3]?|nir|nir08|nir09|swir1|swir2|swir16|swir22|pan|cirrus"
_BAND = re.compile(rf"(?:^|[_.\- ])(B\d[0-9A]?|{_WORDS})(?=$|[_.\- ])", re.IGNORECASE)


def rasters_of(folder: Folder) -> list[str]:
    """Names of its GeoTIFF and JPEG 2000 files."""
    return folder.ending(*_SUFFIXES)


def open_bands(folder: Folder) -> Product | None:
    """The product whose bands are the files of a folder; None where their names are not those of bands, each once."""
    names = rasters_of(folder)
    found = [_BAND.findall(PurePosixPath(name).stem) for name in names]
    bands = [words[-1].upper() if words and words[-1][0] in "Bb" and words[-1][1:2].isdigit() else words[-1].lower()
             for words in found if words]  # fmt: skip
    if len(names) < 2 or len(bands) < len(names) or len(set(bands)) < len(bands):  # noqa: PLR2004 - one is no set
        return None
    offers = [
        Offer(
            band=Band(
                name=band,
                index=0,
                nodata=None,
                described=True,
                aliases=(SENTINEL2[band],) if band in SENTINEL2 else (),
            ),
            href=folder.href(name),
        )
        for band, name in zip(bands, names, strict=True)
    ]
    return Product(
        name=folder.path.stem, path=str(folder.path), kind="folder of one file per band", offers=numbered(offers)
    )
