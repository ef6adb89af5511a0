"""Networks, the model folder, and what a network promises: stride, halo, equivariance. Knows no scene, no Dask."""

from pipeline.model.folder import MODEL_FILE, BareOptions, load_model, save_model
from pipeline.model.model import Model, Precision, model_from_module
from pipeline.model.probe import probe
from pipeline.model.spec import Activation, ModelSpec, Scaling
from pipeline.model.traits import Traits, cache_folder
from pipeline.model.unet import UNet, UNetConfig

__all__ = [
    "MODEL_FILE",
    "Activation",
    "BareOptions",
    "Model",
    "ModelSpec",
    "Precision",
    "Scaling",
    "Traits",
    "UNet",
    "UNetConfig",
    "cache_folder",
    "load_model",
    "model_from_module",
    "probe",
    "save_model",
]
