"""One tile on one device: scale, patches, forward, crop or blend, arg-max. Knows no Dask, no files."""

from pipeline.infer.device import Device, DeviceThread, device_thread, resolve_device
from pipeline.infer.predictor import Predictor, TileResult
from pipeline.infer.taper import Taper, axis_weights

__all__ = [
    "Device",
    "DeviceThread",
    "Predictor",
    "Taper",
    "TileResult",
    "axis_weights",
    "device_thread",
    "resolve_device",
]
