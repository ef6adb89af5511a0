"""Variables of a classic NetCDF file as a product: those on its largest grid, by name. GDAL reads it (not NetCDF-4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.scene.base import Band
from pipeline.scene.datasets import GDAL_ERRORS, open_dataset
from pipeline.scene.folder import CONTAINERS, MARK, gdal_path, unusable
from pipeline.scene.product import Offer, Product, numbered

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC = (b"CDF\x01", b"CDF\x02", b"CDF\x05")
_MOST_VARIABLES = 256


def is_netcdf(path: Path) -> bool:
    """Whether a file is called NetCDF and begins like one of the classic format."""
    if path.suffix.lower() not in CONTAINERS:
        return False
    try:
        with path.open("rb") as file:
            return file.read(8).startswith(_MAGIC)
    except OSError:
        return False  # said in other words where it is opened


def open_netcdf(path: Path) -> Product:
    """The product that a file's variables make.

    Raises:
        InputError: IN-058, it cannot be read, or has no variable on a grid.
    """
    path = path.absolute()
    if '"' in str(path):
        raise unusable(path, "GDAL finds no NetCDF file whose path has a quotation mark")
    try:
        shapes = {name: _shape(path, name) for name in _variables(path)}
    except GDAL_ERRORS as error:
        raise unusable(path, str(error)) from error
    counted = {name: shape for name, shape in shapes.items() if shape[1] > 1 and shape[2] > 1}
    if not counted:
        raise unusable(path, f"none of its variables ({', '.join(shapes) or 'it has none'}) lies on a grid")
    largest = max((shape[1:] for shape in counted.values()), key=lambda hw: hw[0] * hw[1])
    offers = [
        Offer(
            band=Band(name=name if count == 1 else f"{name}-{k}", index=0, nodata=None, described=True),
            href=f"{path}{MARK}{name}",
            number=k,
        )
        for name, (count, *hw) in counted.items()
        if tuple(hw) == largest
        for k in range(1, count + 1)
    ]
    return Product(name=path.stem, path=str(path), kind="NetCDF file", offers=numbered(offers))


def _variables(path: Path) -> list[str]:
    with open_dataset(str(path), "netCDF") as dataset:
        if dataset.count:
            return [str(dataset.tags(1).get("NETCDF_VARNAME", ""))]
        names = [str(name).rpartition(":")[2] for name in dataset.subdatasets]
    if len(names) > _MOST_VARIABLES:
        raise unusable(path, f"it has {len(names)} variables, at most {_MOST_VARIABLES}")
    return names


def _shape(path: Path, name: str) -> tuple[int, int, int]:
    with open_dataset(gdal_path(path, name), "netCDF") as dataset:
        return int(dataset.count), int(dataset.height), int(dataset.width)
