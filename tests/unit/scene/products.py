"""Products of Sentinel-2 and Landsat as their makers lay them out, around pixels that a test has."""

from __future__ import annotations

import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio

if TYPE_CHECKING:
    from pathlib import Path

    from affine import Affine
    from numpy.typing import NDArray

    Bands = dict[str, tuple[int, NDArray[Any], Affine]]

_IDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")


def write_jp2(path: Path, data: NDArray[Any], transform: Affine, crs: str) -> Path:
    """Lossless, as ESA writes them; without nodata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "JP2OpenJPEG", "count": 1, "height": data.shape[0], "width": data.shape[1]}
    with rasterio.open(
        path, "w", **profile, dtype=data.dtype, crs=crs, transform=transform, QUALITY="100", REVERSIBLE="YES",
        YCBCR420="NO",
    ) as file:  # fmt: skip
        file.write(data, 1)
    return path


def write_safe(
    folder: Path, bands: Bands, *, crs: str, offset: int = -1000, quantity: int = 10000, level: str = "2A"
) -> Path:
    """A SAFE folder; `bands` is name -> (metres, pixels, transform)."""
    stem = f"S2A_MSIL{level}_20220301T112111_N0400_R037_T29RKH_20220301T160000"
    safe = folder / f"{stem}.SAFE"
    images = safe / "GRANULE" / f"L{level}_T29RKH_A034000_20220301T112112" / "IMG_DATA"
    for name, (metres, data, transform) in bands.items():
        inner = (
            f"R{metres}m/T29RKH_20220301T112111_{name}_{metres}m" if level == "2A" else f"T29RKH_20220301T112111_{name}"
        )
        write_jp2(images / f"{inner}.jp2", data, transform, crs)
    kind = "BOA" if level == "2A" else "RADIO"
    quantities = {"2A": f"<BOA_QUANTIFICATION_VALUE unit='none'>{quantity}</BOA_QUANTIFICATION_VALUE>"}.get(
        level, f"<QUANTIFICATION_VALUE unit='none'>{quantity}</QUANTIFICATION_VALUE>"
    )
    offsets = "".join(f"<{kind}_ADD_OFFSET band_id='{k}'>{offset}</{kind}_ADD_OFFSET>" for k in range(len(_IDS)))
    (safe / f"MTD_MSIL{level}.xml").write_text(
        f"""<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-{level}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-{level}.xsd">
 <n1:General_Info><Product_Info>
  <PRODUCT_START_TIME>2022-03-01T11:21:11.024Z</PRODUCT_START_TIME>
  <PRODUCT_URI>{stem}.SAFE</PRODUCT_URI><PROCESSING_LEVEL>Level-{level}</PROCESSING_LEVEL>
  <PROCESSING_BASELINE>04.00</PROCESSING_BASELINE>
 </Product_Info><Product_Image_Characteristics>
  <Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX></Special_Values>
  <QUANTIFICATION_VALUES_LIST>{quantities}</QUANTIFICATION_VALUES_LIST>
  <{kind}_ADD_OFFSET_VALUES_LIST>{offsets if offset else ""}</{kind}_ADD_OFFSET_VALUES_LIST>
 </Product_Image_Characteristics></n1:General_Info>
</n1:Level-{level}_User_Product>
"""
    )
    return safe


def write_landsat(
    folder: Path, bands: dict[str, NDArray[Any]], *, crs: str, transform: Affine, level: int = 2, sun: str = "41.5"
) -> Path:
    """A Collection 2 folder of Landsat 8; `bands` is number -> pixels."""
    stem = "LC08_L2SP_014032_20220301_20220309_02_T1"
    home = folder / stem
    home.mkdir(parents=True)
    names = []
    for number, data in {**bands, "QA_PIXEL": np.ones_like(next(iter(bands.values())))}.items():
        quality = number.startswith("QA")
        file = f"{stem}_{number}.TIF" if quality else f"{stem}_SR_B{number}.TIF"
        names.append(f'    FILE_NAME_{"QUALITY_L1_PIXEL" if quality else f"BAND_{number}"} = "{file}"')
        profile = {"driver": "GTiff", "count": 1, "height": data.shape[0], "width": data.shape[1], "nodata": 0}
        with rasterio.open(home / file, "w", **profile, dtype=data.dtype, crs=crs, transform=transform) as out:
            out.write(data, 1)

    def constants(scale: float, offset: float) -> str:
        lines = [f"    REFLECTANCE_MULT_BAND_{n} = {scale}\n    REFLECTANCE_ADD_BAND_{n} = {offset}" for n in bands]
        return "\n".join(lines)

    newline = "\n"
    surface = f"""  GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS
{constants(2.75e-05, -0.2)}
  END_GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"""
    (home / f"{stem}_MTL.txt").write_text(
        f"""GROUP = LANDSAT_METADATA_FILE
  GROUP = PRODUCT_CONTENTS
    LANDSAT_PRODUCT_ID = "{stem}"
    PROCESSING_LEVEL = "L2SP"
{newline.join(names)}
  END_GROUP = PRODUCT_CONTENTS
  GROUP = IMAGE_ATTRIBUTES
    SPACECRAFT_ID = "LANDSAT_8"
    DATE_ACQUIRED = 2022-03-01
    SUN_ELEVATION = {sun}
  END_GROUP = IMAGE_ATTRIBUTES
{surface if level == 2 else ""}
  GROUP = LEVEL1_RADIOMETRIC_RESCALING
{constants(2.0e-05, -0.1)}
  END_GROUP = LEVEL1_RADIOMETRIC_RESCALING
END_GROUP = LANDSAT_METADATA_FILE
END
"""
    )
    return home


def pack(folder: Path, archive: Path) -> Path:
    """The folder in a zip or a tar, under its own name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in files:
                packed.write(path, path.relative_to(folder.parent))
    else:
        with tarfile.open(archive, "w") as tar:
            for path in files:
                tar.add(path, path.relative_to(folder.parent))
    return archive
