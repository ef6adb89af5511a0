"""Networks that others trained, in a format that holds the computation too: ONNX, TorchScript, torch.export.

Each is a module like any other: `(batch, band, y, x)` float32 in, one tensor `(batch, class, y', x')` out, whatever
the file's own layout and number of outputs. It travels between processes as the file's bytes.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import importlib.util
import io
import warnings
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Format = Literal["onnx", "torchscript", "pt2"]
SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".pt2": "pt2", ".torchscript": "torchscript"}
_RANK = 4
_SPATIAL = 2


class NetworkIO(BaseModel):
    """How a file's network wants its input and which of its outputs counts; `scenemask:network` of `model.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    """Name of the file, in the model's folder."""
    format: Format
    """What kind of file it is."""
    layout: Literal["channels_first", "channels_last"] = "channels_first"
    """Order of the axes of input and output."""
    output: str | int | None = None
    """Name or position of the output that holds the classes; the first one with four axes when None."""


class ForeignNetwork(nn.Module, abc.ABC):
    """A network from a file. Built when first called, in each process anew."""

    fixed_side: int | None = None
    """The only side that the file allows, in pixels; None where sides are free."""

    def __init__(self, content: bytes, io_spec: NetworkIO) -> None:
        super().__init__()
        self.content = content
        self.io = io_spec

    def forward(self, x: Tensor) -> Tensor:
        """One tensor `(batch, class, y', x')` float32."""
        output = self._pick(self._compute(self._turned(x)))
        return output.permute(0, 3, 1, 2) if self.io.layout == "channels_last" else output

    def outputs(self, x: Tensor) -> dict[str, tuple[int, ...]]:
        """All that comes out: sizes in the file's own layout, by name, or by position where there are no names."""
        found = self._compute(self._turned(x))
        if isinstance(found, Tensor):
            return {"0": tuple(found.shape)}
        named = found if isinstance(found, dict) else dict(enumerate(found))
        names: list[Any] = [name for name in named if isinstance(name, str)] or list(named)
        return {str(name): tuple(named[name].shape) for name in names if isinstance(named[name], Tensor)}

    def _turned(self, x: Tensor) -> Tensor:
        """In the file's own layout."""
        return x.permute(0, 2, 3, 1).contiguous() if self.io.layout == "channels_last" else x

    @abc.abstractmethod
    def _compute(self, x: Tensor) -> Any:
        """What the file gives for `x`: a tensor, a sequence, or a mapping."""

    def _pick(self, outputs: Any) -> Tensor:
        """The one output that counts, of a tensor, a sequence or a mapping."""
        if isinstance(outputs, Tensor):
            return outputs
        named: Mapping[Any, Any] = outputs if isinstance(outputs, dict) else dict(enumerate(outputs))
        if self.io.output is not None:
            if self.io.output not in named:
                _refuse_output(self.io, list(named))
            return _tensor(named[self.io.output], self.io)
        found = [value for value in named.values() if isinstance(value, Tensor) and value.ndim == _RANK]
        if not found:
            _refuse_output(self.io, list(named))
        return found[0]

    def __getstate__(self) -> dict[str, Any]:
        return {"content": self.content, "io": self.io}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["content"], state["io"])  # type: ignore[misc]  # bytes in, a fresh network out
        self.eval()

    def __deepcopy__(self, memo: object) -> ForeignNetwork:
        return type(self)(self.content, self.io).eval()


class TorchProgram(ForeignNetwork):
    """TorchScript or torch.export: PyTorch runs it, on any device."""

    def __init__(self, content: bytes, io_spec: NetworkIO) -> None:
        super().__init__(content, io_spec)
        self.program, shape = _load_program(content, io_spec)
        self.fixed_side = _only_side(shape, io_spec)
        self.requires_grad_(requires_grad=False)

    def _compute(self, x: Tensor) -> Any:
        return self.program(x)

    def train(self, mode: bool = True) -> TorchProgram:  # noqa: FBT001, FBT002 - PyTorch's own signature
        """Exported programs refuse to change their mode: they were exported in one."""
        self.training = mode
        if self.io.format == "torchscript":
            self.program.train(mode)
        return self

    @property
    def bands(self) -> int | None:
        """Input channels of the first convolution; None when it has none."""
        weights = [p for p in self.parameters() if p.ndim == _RANK]
        return int(weights[0].shape[1]) if weights else None


class OnnxNetwork(ForeignNetwork):
    """ONNX, computed by ONNX Runtime on the CPU."""

    def __init__(self, content: bytes, io_spec: NetworkIO) -> None:
        super().__init__(content, io_spec)
        self.fixed_side = _only_side(self.input_shape, io_spec)

    @functools.cached_property
    def session(self) -> Any:
        """The session of this process."""
        return onnx_session(self.content, where=self.io.file)

    def release(self) -> None:
        """Close the session, which keeps the memory of its largest forward; the next forward opens another."""
        vars(self).pop("session", None)

    @property
    def num_weights(self) -> int | None:
        """Floating-point numbers in the file's arrays; None without the `onnx` package."""
        from pipeline.model.onnx_file import num_weights  # noqa: PLC0415 - an extra

        return num_weights(self.content)

    @property
    def input_shape(self) -> list[Any]:
        """Sizes of the input's four axes; text or None where they are free."""
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != _RANK:
            raise ModelError(
                f"the network has the inputs {[(i.name, i.shape) for i in inputs]}; expected one with four axes",
                code="MD-005",
                title="Output does not fit the input",
                where=self.io.file,
                fix="export it with images as its only input",
            )
        return list(inputs[0].shape)

    @property
    def bands(self) -> int | None:
        """Input channels; None where they are free."""
        channels = self.input_shape[3 if self.io.layout == "channels_last" else 1]
        return channels if isinstance(channels, int) else None

    def _compute(self, x: Tensor) -> Any:
        return run_session(self.session, x)


def run_session(session: Any, x: Tensor) -> dict[str | int, Tensor]:
    """Outputs by name and by position."""
    if session.get_inputs()[0].type != "tensor(float)":
        msg = f"the network takes {session.get_inputs()[0].type}, not float32"
        raise ValueError(msg)
    try:
        arrays = session.run(None, {session.get_inputs()[0].name: x.detach().cpu().contiguous().numpy()})
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        msg = f"ONNX Runtime fails on {tuple(x.shape)}: {str(error).partition(chr(10))[0]}"
        raise RuntimeError(msg) from error
    tensors = [torch.from_numpy(array) for array in arrays]
    names = [output.name for output in session.get_outputs()]
    return {**dict(zip(names, tensors, strict=True)), **dict(enumerate(tensors))}


def onnx_session(content: bytes, *, where: str, threads: int = 0, device: str = "cpu") -> Any:
    """A session of ONNX Runtime.

    Raises:
        ModelError: MD-001 not a whole ONNX file, MD-014 ONNX Runtime missing or too old for it.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise _needs_onnx("ONNX Runtime is not installed", where)
    import onnxruntime as ort  # noqa: PLC0415 - an extra

    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if provider not in ort.get_available_providers():
        raise _needs_onnx(f"this ONNX Runtime has no {provider}, only {ort.get_available_providers()}", where)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Planning memory ahead takes 1.7 instead of 1.1 kB per pixel of a small U-Net, for the same time.
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # what fails is raised; nothing else belongs on stderr
    # Idle threads must not spin: reading and writing go on beside them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(content, options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        reason = str(error).partition("\n")[0]
        if "opset" in reason.lower() or "ir version" in reason.lower():
            raise _needs_onnx(f"ONNX Runtime {ort.__version__} is too old for it: {reason}", where) from error
        raise ModelError(
            f"not a whole ONNX file that ONNX Runtime {ort.__version__} can run: {reason}",
            code="MD-001",
            title="Weights cannot be read",
            where=where,
            fix="copy or export the file again",
        ) from error
    if provider not in session.get_providers():  # its libraries do not load: it would go on with the CPU's, silently
        raise _needs_onnx(f"ONNX Runtime's {provider} does not start here, only {session.get_providers()}", where)
    return session


def load_foreign(path: Path, io_spec: NetworkIO, *, trust: bool) -> ForeignNetwork:
    """The network in a file.

    Args:
        path: The file.
        io_spec: How to use it.
        trust: Whether programs may run: TorchScript and torch.export files can hold any computation.

    Raises:
        ModelError: MD-001 missing or damaged, MD-008 a program that nobody has vouched for, MD-014.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        _refuse_file(path, error.strerror or str(error), error)
    if io_spec.format == "onnx":
        from pipeline.model.onnx_file import self_contained  # noqa: PLC0415 - an extra

        return OnnxNetwork(self_contained(content, path), io_spec).eval()
    if not trust:
        raise ModelError(
            f"{path.name} is a TorchScript or torch.export program, which can run any code "
            f"(SHA-256 {hashlib.sha256(content).hexdigest()})",
            code="MD-008",
            title="Model is a program",
            where=str(path),
            fix="compare the SHA-256 with its author's and add --trust-model, or use .onnx or .safetensors",
        )
    return TorchProgram(content, io_spec).eval()


def _only_side(shape: Sequence[Any], io_spec: NetworkIO) -> int | None:
    """The only side that a file declares for its input, of whose four sizes those are numbers that are not free."""
    side = shape[1:3] if io_spec.layout == "channels_last" else shape[2:4]
    if len(side) < _SPATIAL or not all(isinstance(n, int) for n in side):
        return None
    if side[0] != side[1]:
        raise ModelError(
            f"the network takes patches of {side[0]} x {side[1]} px only; expected square ones",
            code="MD-007",
            title="Network takes no tried patch size",
            where=io_spec.file,
            fix="export it with free height and width (dynamic axes)",
        )
    return int(side[0])


def _load_program(content: bytes, io_spec: NetworkIO) -> tuple[Any, Sequence[Any]]:
    """(program, sizes of its input as far as the file tells)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated: whoever brings such a file knows
            if io_spec.format == "torchscript":
                loaded = torch.jit.load(io.BytesIO(content), map_location="cpu")  # type: ignore[no-untyped-call]
                return loaded.eval(), ()
            exported = torch.export.load(io.BytesIO(content))
            return exported.module(), _exported_shape(exported)
    except Exception as error:
        raise ModelError(
            f"not a whole {io_spec.format} file: {str(error).partition(chr(10))[0] or type(error).__name__}",
            code="MD-001",
            title="Weights cannot be read",
            where=io_spec.file,
            fix="copy or export the file again",
        ) from error


def _exported_shape(exported: Any) -> Sequence[Any]:
    """Sizes of the first input that is no weight; symbols where they are free."""
    inputs = set(exported.graph_signature.user_inputs)
    found = (node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder" and node.name in inputs)
    return tuple(getattr(next(found, None), "shape", ()))


def _tensor(value: Any, io_spec: NetworkIO) -> Tensor:
    if not isinstance(value, Tensor):
        _refuse_output(io_spec, [type(value).__name__])
    return value


def _refuse_output(io_spec: NetworkIO, found: Sequence[Any]) -> NoReturn:
    wanted = "one with four axes" if io_spec.output is None else repr(io_spec.output)
    raise ModelError(
        f"the network's outputs are {found}; expected {wanted}",
        code="MD-005",
        title="Output does not fit the input",
        where=io_spec.file,
        fix="name the output in model.json (scenemask:network, output)",
    )


def _refuse_file(path: Path, why: str, cause: Exception) -> NoReturn:
    raise ModelError(
        f"cannot read the network: {why}",
        code="MD-001",
        title="Weights cannot be read",
        where=str(path),
        fix="check the path",
    ) from cause


def _needs_onnx(what: str, where: str) -> ModelError:
    return ModelError(
        what,
        code="MD-014",
        title="ONNX Runtime cannot run it",
        where=where,
        fix='pip install "scenemask[onnx]", or upgrade it; for CUDA onnxruntime-gpu and its CUDA; or --device cpu',
    )
