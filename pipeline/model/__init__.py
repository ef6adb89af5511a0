"""Networks, the model folder, and what a network promises: stride, halo, equivariance. Knows no scene, no Dask."""

from pipeline.model.bare import BareOptions
from pipeline.model.cache import cache_folder
from pipeline.model.decision import NOT_FINITE, decide, decide_output, has_labels, labels_of, to_probabilities
from pipeline.model.engine import make_engine, num_left_out
from pipeline.model.engine_spec import Backend, Engine, EngineSpec, Precision, has_fast_bfloat16
from pipeline.model.folder import (
    MODEL_FILE,
    adopt_model,
    folder_taken,
    load_model,
    publish_model,
    save_model,
    write_traits,
)
from pipeline.model.foreign import ForeignNetwork, NetworkIO
from pipeline.model.lean import can_trim, left_out_px
from pipeline.model.model import Model, model_from_module
from pipeline.model.probe import probe
from pipeline.model.spec import Activation, ModelSpec, Scaling
from pipeline.model.traits import Traits
from pipeline.model.unet import UNet, UNetConfig

__all__ = [
    "MODEL_FILE",
    "NOT_FINITE",
    "Activation",
    "Backend",
    "BareOptions",
    "Engine",
    "EngineSpec",
    "ForeignNetwork",
    "Model",
    "ModelSpec",
    "NetworkIO",
    "Precision",
    "Scaling",
    "Traits",
    "UNet",
    "UNetConfig",
    "adopt_model",
    "cache_folder",
    "can_trim",
    "decide",
    "decide_output",
    "folder_taken",
    "has_fast_bfloat16",
    "has_labels",
    "labels_of",
    "left_out_px",
    "load_model",
    "make_engine",
    "model_from_module",
    "num_left_out",
    "probe",
    "publish_model",
    "save_model",
    "to_probabilities",
    "write_traits",
]
