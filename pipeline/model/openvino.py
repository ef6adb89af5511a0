"""OpenVINO on x86 CPUs: the same weights, compiled for one patch size.

A graph of one static size needs a third less memory than one that takes any size. The converted graph is kept in the
user's cache, because converting takes seconds and compiling a fifth of one.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.model.cache import cache_folder, write_cached
from pipeline.model.decision import has_labels
from pipeline.model.engine_spec import EngineSpec
from pipeline.model.foreign import ForeignNetwork, OnnxNetwork
from pipeline.model.large_pages import large_pages
from pipeline.model.lean import can_trim, fold_batch_norm, trimmed
from pipeline.model.openvino_graph import from_onnx, sum_instead_of_join
from pipeline.model.openvino_labels import with_labels
from pipeline.model.openvino_trim import crop_by_padding, leave_out

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from pipeline.model.model import Model
    from pipeline.model.spec import ModelSpec

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def available() -> bool:
    """Whether OpenVINO is installed and this is an x86 CPU, for which it is made."""
    return platform.machine() in {"x86_64", "AMD64"} and importlib.util.find_spec("openvino") is not None


@functools.cache
def _core() -> Any:
    # Importing OpenVINO reports home unless its telemetry package is missing; ours stays silent.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: importing it fails
    import openvino  # noqa: PLC0415 - an extra

    return openvino.Core()


class OpenVinoEngine:
    """One compiled graph for outputs, or one for labels; each made when first called."""

    def __init__(self, graph: Any, spec: EngineSpec, *, decides: ModelSpec) -> None:
        self._graph = graph
        self._spec = spec
        self._decides = decides
        self._labels = has_labels(decides)
        self._requests: dict[bool, _Request] = {}

    @classmethod
    def of(cls, model: Model, spec: EngineSpec) -> OpenVinoEngine:
        """An engine for a model.

        Raises:
            ModelError: MD-012, OpenVINO is not here or cannot run the network.
        """
        if not available():
            raise _cannot_run("OpenVINO is not installed here", "install scenemask[openvino] on every worker")
        try:
            key = model.digest if model.cacheable else None
            graph = read_graph(model.network, bands=len(model.spec.bands), key=key, trim_px=spec.trim_px)
        except RuntimeError as error:
            raise _cannot_run(f"OpenVINO cannot run it: {str(error).splitlines()[0]}", "use --backend auto") from error
        return cls(graph, spec, decides=model.spec)

    def prepare(self, shape: tuple[int, ...], *, labels: bool) -> None:
        """Compile the graph for inputs of this shape."""
        self._request(shape, labels=labels and self._labels)

    def run(self, x: Tensor) -> Tensor:
        """Output of the network; see `Engine`."""
        return torch.from_numpy(self._infer(x, labels=False))

    def label(self, x: Tensor) -> Tensor | None:
        """Classes; see `Engine`."""
        if not self._labels:
            return None
        labels = torch.from_numpy(self._infer(x, labels=True)[0])
        return labels if self._decides.multilabel else labels[0]

    def _infer(self, x: Tensor, *, labels: bool) -> np.ndarray[Any, Any]:
        import openvino  # noqa: PLC0415 - an extra

        request = self._request(tuple(x.shape), labels=labels)
        request.set_input_tensor(openvino.Tensor(x.contiguous().numpy(), shared_memory=True))
        request.infer()
        output: np.ndarray[Any, Any] = request.get_output_tensor(0).data
        return output

    def _request(self, shape: tuple[int, ...], *, labels: bool) -> Any:
        """An infer request for inputs of this shape; the former one goes first where its graph has another size."""
        size = shape if self._spec.one_size else None
        made = self._requests.get(labels)
        if made is None or made.size != size:
            self._requests.pop(labels, None)
            graph = self._graph.clone()
            if size is not None:
                graph.reshape(list(size))
            if labels:
                graph = with_labels(graph, self._decides)
            made = self._requests[labels] = _Request(size, _compile(graph, self._spec))
        return made.request


class _Request(NamedTuple):
    size: tuple[int, ...] | None
    """Shape of the input that the graph was compiled for; None where it takes any."""
    request: Any


def _compile(graph: Any, spec: EngineSpec) -> Any:
    config = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[spec.precision],
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": spec.threads,
        "ENABLE_CPU_PINNING": False,  # other threads read and write meanwhile
    }
    with large_pages():
        return _core().compile_model(graph, "CPU", config).create_infer_request()


def read_graph(network: nn.Module, *, bands: int, key: str | None, trim_px: int = 0) -> Any:
    """The network as an OpenVINO graph, sizes left open; from the user's cache where it was converted before.

    Args:
        network: In eval mode, float32, on the CPU.
        bands: Input bands.
        key: Identity of the network; None when nothing vouches for it, which is then converted each time.
        trim_px: Outputs to leave out on each side.
    """
    if key is None:
        return _convert(network, bands, trim_px)
    path = _graph_path(key, trim_px)
    with contextlib.suppress(RuntimeError, OSError):
        if path.exists():
            return _core().read_model(path)
    graph = _convert(network, bands, trim_px)
    with contextlib.suppress(RuntimeError, OSError):
        _save(graph, path)
    return graph


_CONVERTER = 5
"""Raise when the conversion changes, so that cached graphs are made again."""


def _graph_path(key: str, trim_px: int = 0) -> Path:
    version = importlib.metadata.version("openvino")
    name = hashlib.sha256(f"{_CONVERTER}:{version}:{torch.__version__}:{key}:{trim_px}".encode()).hexdigest()
    return cache_folder() / "openvino" / f"{name}.xml"


def _convert(network: nn.Module, bands: int, trim_px: int) -> Any:
    _core()
    import openvino  # noqa: PLC0415 - an extra

    if isinstance(network, OnnxNetwork):
        graph = from_onnx(network, bands, read=_core().read_model)
        leave_out(graph, trim_px)
        return sum_instead_of_join(crop_by_padding(graph))
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # about checks of shapes, which tracing makes constant
        folded = copy.deepcopy(network)
        if not isinstance(network, ForeignNetwork):
            folded = fold_batch_norm(folded)
        only = getattr(network, "fixed_side", None)
        side = only or 2 * trim_px + _EXAMPLE_PX
        itself = can_trim(network)
        made = trimmed(folded, trim_px) if itself else folded
        graph = openvino.convert_model(made.eval(), example_input=torch.zeros(1, bands, side, side))
    graph.reshape([1, bands, *((only, only) if only else (-1, -1))])
    if not itself:
        leave_out(graph, trim_px)
    return sum_instead_of_join(crop_by_padding(graph))


_EXAMPLE_PX = 256


def _save(graph: Any, path: Path) -> None:
    """Both files of a graph, whole or not at all: the weights first, the description last."""
    import openvino  # noqa: PLC0415 - an extra

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        openvino.save_model(graph, made, compress_to_fp16=False)
        made.with_suffix(".bin").replace(path.with_suffix(".bin"))
        made.replace(path)


def _cannot_run(why: str, fix: str) -> ModelError:
    return ModelError(why, code="MD-012", title="Backend cannot run the network", fix=fix)


def why_not(model: Model) -> str | None:
    """Why OpenVINO cannot run this model here, in a few words; None where it gives what PyTorch gives.

    Converts the network and compares both on noise once; the answer is kept in the user's cache.
    """
    if not available():
        return "OpenVINO is not installed" if platform.machine() in {"x86_64", "AMD64"} else "not an x86 CPU"
    if not model.cacheable:
        return _compare(model)
    path = _graph_path(model.digest).with_suffix(".json")
    with contextlib.suppress(OSError, ValueError, KeyError):
        answer = json.loads(path.read_text())["why_not"]
        return None if answer is None else str(answer)
    answer = _compare(model)
    write_cached(path, json.dumps({"why_not": answer}))
    return answer


def _compare(model: Model) -> str | None:
    side = model.traits.sizes.at_least(256)
    noise = torch.randn(1, len(model.spec.bands), side, side, generator=torch.Generator().manual_seed(0))
    spec = EngineSpec(backend="openvino", device="cpu", precision="float32", threads=1, one_size=True)
    worst = 0.0
    try:
        engine = OpenVinoEngine.of(model, spec)
        # Standardised values, and small positive ones: networks fed with reflectance say nothing on the former.
        for x in (noise, 0.2 + 0.1 * noise):
            ours = engine.run(x)
            with torch.inference_mode():
                reference = model.network(x).float()
            if ours.shape != reference.shape:
                return f"OpenVINO gives {tuple(ours.shape)}, the network {tuple(reference.shape)}"
            worst = max(worst, float((ours - reference).abs().max() / reference.abs().max().clamp_min(_FAINT)))
    except Exception as error:  # noqa: BLE001 - whatever stops it, the other engine remains
        return f"OpenVINO cannot run the network: {str(error).partition(chr(10))[0] or type(error).__name__}"
    if worst <= _PARITY:
        return None
    return f"OpenVINO differs from the network by {worst:.1e} of the largest output"


def num_left_out(model: Model, spec: EngineSpec, *, budget_bytes: int) -> int:
    """Outputs on each side that a graph for `spec.trim_px` leaves out; 0 where the network cannot do without.

    Compares what is kept with what the whole network gives on noise once; the answer is kept in the user's cache.

    Args:
        model: Not our own U-Net, which trims itself.
        spec: Of the engine.
        budget_bytes: What the comparison may take.
    """
    traits = model.traits
    side = traits.sizes.at_least(2 * spec.trim_px + traits.stride)
    too_large = traits.sizes.largest is not None or side * side * traits.bytes_per_px > budget_bytes
    if traits.margin_px or too_large:
        return 0
    if not model.cacheable:
        return _compare_trimmed(model, spec, side)
    path = _graph_path(model.digest, spec.trim_px).with_suffix(".json")
    with contextlib.suppress(OSError, ValueError, KeyError):
        return int(json.loads(path.read_text())["left_out"])
    answer = _compare_trimmed(model, spec, side)
    write_cached(path, json.dumps({"left_out": answer}))
    return answer


def _compare_trimmed(model: Model, spec: EngineSpec, side: int) -> int:
    """How many outputs are missing, if those that are there are the same; else 0."""
    exact = spec.model_copy(update={"precision": "float32"})
    x = torch.randn(1, len(model.spec.bands), side, side, generator=torch.Generator().manual_seed(0))
    try:
        kept, whole = (OpenVinoEngine.of(model, one).run(x).clone() for one in (exact, exact.untrimmed))
    except Exception:  # noqa: BLE001 - whatever stops it, the whole network remains
        return 0
    missing = (whole.shape[-1] - kept.shape[-1]) // 2
    cut = slice(spec.trim_px, side - spec.trim_px)
    inner = slice(spec.trim_px - missing, side - spec.trim_px - missing)
    worst = (kept[..., inner, inner] - whole[..., cut, cut]).abs().max()
    return missing if missing > 0 and worst <= _PARITY * whole.abs().max().clamp_min(_FAINT) else 0


_FAINT = 1e-3
"""Outputs below this are compared as if they were this large: a probability of 1e-9 has no digits to keep."""
_PARITY = 1e-4
"""Largest difference from PyTorch in float32, as a share of the largest output: order of summation, no more."""
