"""A network made ready to run: one small protocol, whatever library computes it.

PyTorch runs everything everywhere. OpenVINO runs the same weights on x86 CPUs in less time and memory, from a graph
compiled for one patch size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.model.foreign import OnnxNetwork, onnx_session
from pipeline.model.lean import can_trim, left_out_px
from pipeline.model.torch_engine import TorchEngine

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.model.engine_spec import Engine, EngineSpec
    from pipeline.model.model import Model


def make_engine(model: Model, spec: EngineSpec) -> Engine:
    """The engine that a plan asks for. Call it on the thread that will use it.

    Raises:
        ModelError: MD-012 when this machine cannot run the backend.
    """
    if spec.backend == "openvino":
        from pipeline.model.openvino import OpenVinoEngine  # noqa: PLC0415 - an extra; half a second to import

        return OpenVinoEngine.of(model, spec)
    if spec.backend == "onnxruntime":
        return OnnxEngine(model.network, spec)
    return TorchEngine(model.network, spec, decides=model.spec)


def num_left_out(model: Model, spec: EngineSpec, *, budget_bytes: int) -> int:
    """Outputs on each side that an engine leaves out, at most `spec.trim_px`. Call it on the thread that will use it.

    Our own U-Net can do it with every library, any other network of which OpenVINO has a graph there.

    Args:
        model: The model.
        spec: Of the engine; all patches have one size.
        budget_bytes: What finding out may take.
    """
    if not spec.trim_px:
        return 0
    if can_trim(model.network):
        return left_out_px(model.network, spec.trim_px)
    if spec.backend == "openvino":
        from pipeline.model import openvino  # noqa: PLC0415 - as above

        return openvino.num_left_out(model, spec, budget_bytes=budget_bytes)
    return 0


class OnnxEngine:
    """ONNX Runtime, float32."""

    def __init__(self, network: nn.Module, spec: EngineSpec) -> None:
        if not isinstance(network, OnnxNetwork):
            msg = f"ONNX Runtime runs ONNX files, not {type(network).__name__}"
            raise TypeError(msg)
        self._device = spec.device
        self._network = OnnxNetwork(network.content, network.io)
        session = onnx_session(network.content, where=network.io.file, threads=spec.threads, device=spec.device)
        self._network.session = session

    def prepare(self, shape: tuple[int, ...], *, labels: bool) -> None:
        """Nothing to do."""

    def run(self, x: Tensor) -> Tensor:
        """Output of the network; see `Engine`."""
        output: Tensor = self._network(x)
        return output.float().to(self._device)

    def label(self, x: Tensor) -> None:
        """None: outputs leave the library as they are."""
