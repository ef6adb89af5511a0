"""Which sources are more than one raster file: items, folders, archives; everything else is opened as it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pipeline.location import is_remote
from pipeline.scene.stac import is_item, open_item

if TYPE_CHECKING:
    from pipeline.access import Access
    from pipeline.scene.product import Product


def find_product(source: Any, access: Access) -> Product | None:
    """What a source of several files offers; None where it is one raster or an array. Raises as `open_scene`."""
    if not (is_remote(source) or isinstance(source, str | os.PathLike)):
        return None
    return open_item(source, access) if is_item(source) else None
