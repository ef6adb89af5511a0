"""Versions, drivers, devices, disk: what a question about a failure needs."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch", "rasterio", "numpy", "zarr", "dask", "distributed", "xarray", "shapely", "pyogrio", "pyproj", "geopandas",
    "pyarrow", "safetensors", "pydantic",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Installed versions of what decides the result."""
    found = {"scenemask": _version("scenemask"), "python": platform.python_version()}
    return found | {name: _version(name) for name in _PACKAGES}


def examine() -> dict[str, Any]:
    """Everything that `scenemask doctor` prints, as plain values; no paths of the user's but the cache's."""
    import pyogrio  # noqa: PLC0415 - heavy, and only needed here
    import rasterio  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from pipeline.model import cache_folder  # noqa: PLC0415

    drivers = rasterio.drivers.raster_driver_extensions()
    return {
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "gdal_rasters": f"{rasterio.__gdal_version__} (rasterio)",
        "gdal_vectors": ".".join(map(str, pyogrio.__gdal_version__)) + " (pyogrio)",
        "jpeg2000": "yes" if "jp2" in drivers else "no driver",
        "cuda": _cuda(torch),
        "cpu_features": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "cache": str(cache_folder()),
        "executable": sys.executable,
        "versions": versions(),
    }


def _cuda(torch: Any) -> str:
    if not torch.cuda.is_available():
        return f"none (PyTorch {torch.__version__})"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(names)} (CUDA {torch.version.cuda})"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
