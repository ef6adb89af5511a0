"""Scene and model brought together: bands matched by name before position, counts checked before any work."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError, UsageError
from pipeline.run.resolution import on_wished_grid
from pipeline.run.settings import access_of
from pipeline.run.values import in_the_models_values
from pipeline.scene import Aoi, Limits, open_quality_layer
from pipeline.scene.open import Opening, look_at, open_product
from pipeline.scene.product import Product

if TYPE_CHECKING:
    from pipeline.model import BareOptions, Model
    from pipeline.run.settings import SegmentSettings
    from pipeline.scene import Band, Scene

_ALIASES = {
    "r": "red", "g": "green", "b": "blue", "n": "nir",
    "b02": "blue", "b03": "green", "b04": "red", "b08": "nir", "b11": "swir16", "b12": "swir22",
    "b8a": "nir08", "b01": "coastal", "b05": "rededge1", "b06": "rededge2", "b07": "rededge3", "b09": "nir09",
}  # fmt: skip
"""Initials, and Sentinel-2 band numbers of two digits (`B5` is another band on Landsat), -> STAC common names.

Source: STAC eo extension, common band names.
"""


def resolve_scene(source: Any, model: Model | None, settings: SegmentSettings) -> Scene:
    """The scene with the bands that the model takes, in its order.

    Args:
        source: Path, several paths, `xarray.DataArray`, or a `Scene`.
        model: Whose bands are needed; None for all bands.
        settings: For `bands`, `nodata`, `assume_crs`, `allow_no_crs`.

    Raises:
        InputError: The scene cannot be used, or IN-012: its bands are not those of the model.
        UsageError: CF-014, options for opening a scene were given with one that is open.
    """
    opening = opening_of(settings)
    found: Scene | Product
    if not hasattr(source, "read_block"):
        found = look_at(source, opening)
    else:
        _refuse_opening_options(settings)
        found = source
    if settings.bands is not None:
        found = found.select([int(b) if b.isdecimal() else b for b in settings.bands])
    elif model is not None:
        found = _match_by_name(found, model)
    if model is not None and len(found.bands) != len(model.spec.bands):
        raise _mismatch(found, model)
    scene = open_product(found, opening) if isinstance(found, Product) else found
    scene = on_wished_grid(scene, model, settings)
    return scene if model is None else in_the_models_values(scene, model, settings)


def opening_of(settings: SegmentSettings) -> Opening:
    """What the settings say about files that are opened."""
    return Opening(
        nodata=settings.nodata,
        assume_crs=settings.assume_crs,
        allow_no_crs=settings.allow_no_crs,
        access=access_of(settings),
        resampling=settings.resampling,
        any_grid=settings.align is not None or settings.crs is not None,
        warp_gcps=settings.warp_gcps,
        rpc_height_m=settings.rpc_height,
        rpc_dem=None if settings.rpc_dem is None else str(settings.rpc_dem),
    )


def resolve_limits(scene: Scene, settings: SegmentSettings) -> Limits:
    """Where a result of the scene is wanted.

    Raises:
        PipelineError: The area of interest or the quality layer cannot be used.
    """
    aoi = None if settings.aoi is None else Aoi.from_file(settings.aoi, scene.geobox)
    if settings.mask_layer is None:
        return Limits(aoi=aoi)
    access = access_of(settings)
    layer = open_quality_layer(scene, settings.mask_layer, settings.mask_values, access=access)
    return Limits(aoi=aoi, layer=layer)


def _refuse_opening_options(settings: SegmentSettings) -> None:
    given = {
        "nodata": settings.nodata,
        "assume_crs": settings.assume_crs,
        "allow_no_crs": settings.allow_no_crs or None,
        "warp_gcps": settings.warp_gcps or None,
    }
    late = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if late:
        raise UsageError(
            f"{', '.join(late)} given with a scene that is open already, expected with its path",
            code="CF-014",
            title="Option comes too late",
            fix=f"open_scene(path, {', '.join(late)}), or give the path instead of the Scene",
        )


def _match_by_name(scene: Scene | Product, model: Model) -> Scene | Product:
    """Bands in the model's order when every one of its names is found; else the scene as it is.

    Raises:
        InputError: IN-012, both sides name their bands and have no name in common: an order would be a guess.
    """
    found: dict[str, int] = {}
    for band in scene.bands:
        for name in _names(band):
            found.setdefault(name, band.index)
    wanted = [canonical_band(name) for name in model.spec.bands]
    if len(set(wanted)) == len(wanted) and all(name in found for name in wanted):
        return scene.select([found[name] for name in wanted])
    named = any(band.described and not _is_number(band.name) for band in scene.bands)
    if named and not all(map(_is_number, model.spec.bands)):
        if isinstance(scene, Product) or not found.keys() & set(wanted):
            missing = [name for name, key in zip(model.spec.bands, wanted, strict=True) if key not in found]
            some = f"; {', '.join(missing)} not found" if found.keys() & set(wanted) else ""
            raise _mismatch(scene, model, some or "; not one name is the same on both sides")
        if len(scene.bands) != len(wanted):
            raise _mismatch(scene, model)
    return scene


def matched_by_position(scene: Scene, model: Model) -> bool:
    """True when some band is not called what the model calls it, by name or colour: its place was trusted."""
    return any(
        canonical_band(name) not in _names(band) for band, name in zip(scene.bands, model.spec.bands, strict=True)
    )


def _names(band: Band) -> tuple[str, ...]:
    """What a band may be called: its own name, others that it goes by, then its colour."""
    return tuple(map(canonical_band, (band.name, *band.aliases, band.color)))


def _is_number(name: str) -> bool:
    """Names that say no more than the place: "3", "Band 3"."""
    return canonical_band(name).removeprefix("band").isdecimal()


def bare_options(settings: SegmentSettings) -> BareOptions:
    """What the settings say about a weights file without `model.json`."""
    from pipeline.model import BareOptions  # noqa: PLC0415 - torch waits until a model is loaded

    return BareOptions(
        scale=settings.scale,
        offset=settings.offset,
        mean=settings.mean,
        std=settings.std,
        class_names=settings.class_names,
        activation=settings.activation,
        threshold=settings.threshold,
        multilabel=settings.multilabel,
    )


def canonical_band(name: str) -> str:
    """STAC common name of a band where it is known, else the name itself in lower case."""
    key = name.strip().lower().replace("_", "").replace("-", "").replace(" ", "")
    return _ALIASES.get(key, key)


def _mismatch(scene: Scene | Product, model: Model, more: str = "") -> InputError:
    have = [band.name for band in scene.bands]
    missing = [name for name in model.spec.bands if canonical_band(name) not in {canonical_band(n) for n in have}]
    near = [match for name in missing for match in difflib.get_close_matches(name, have, n=1)]
    hint = f" (near: {', '.join(near)})" if near else ""
    return InputError(
        f"scene has {len(have)} bands ({', '.join(have)}), model {model.spec.name!r} expects "
        f"{len(model.spec.bands)} ({', '.join(model.spec.bands)}){more}",
        code="IN-012",
        title="Bands do not match the model",
        where=f"scene {scene.name}",
        fix=f"choose bands in the model's order with --bands{hint}; `scenemask inspect` lists them",
    )
