"""One tile on one device: scale, patches, forward, crop or blend, arg-max. Knows no Dask, no files."""

from pipeline.infer.augment import Augmentation, Symmetry, symmetries
from pipeline.infer.calibration import Batching, Calibration, calibrate, choose_batch
from pipeline.infer.device import Device, DeviceThread, device_thread, is_device_lost, is_out_of_memory, resolve_device
from pipeline.infer.host_memory import give_back_freed, resident_bytes, share_heap
from pipeline.infer.network_input import Scaler, source_window
from pipeline.infer.predictor import Predictor, TileResult
from pipeline.infer.taper import Taper, axis_weights

__all__ = [
    "Augmentation",
    "Batching",
    "Calibration",
    "Device",
    "DeviceThread",
    "Predictor",
    "Scaler",
    "Symmetry",
    "Taper",
    "TileResult",
    "axis_weights",
    "calibrate",
    "choose_batch",
    "device_thread",
    "give_back_freed",
    "is_device_lost",
    "is_out_of_memory",
    "resident_bytes",
    "resolve_device",
    "share_heap",
    "source_window",
    "symmetries",
]
