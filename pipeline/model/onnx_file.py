"""ONNX files looked into: weights in files of their own are taken in, from the model's folder only; weights counted."""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MARK = b"location"
"""Key that every reference to external data has; a file without it has none."""


def self_contained(content: bytes, path: Path) -> bytes:
    """The same network with all weights inside.

    Args:
        content: Of the file.
        path: Where it lies; references are followed inside its folder only.

    Raises:
        ModelError: MD-015 a reference leaves the folder, as a hard link may, or its file is missing, MD-001 damaged,
            MD-014 no `onnx`.
    """
    if _MARK not in content:
        return content
    if importlib.util.find_spec("onnx") is None:
        raise ModelError(
            "the network's weights lie in files beside it, and the onnx package that reads them is not installed",
            code="MD-014",
            title="ONNX Runtime cannot run it",
            where=str(path),
            fix='pip install "scenemask[onnx]"',
        )
    import onnx  # noqa: PLC0415 - an extra
    from onnx import external_data_helper as external  # noqa: PLC0415 - an extra

    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's error has no stable public name
        raise ModelError(
            f"not a whole ONNX file: {str(error).partition(chr(10))[0]}",
            code="MD-001",
            title="Weights cannot be read",
            where=str(path),
            fix="copy or export the file again",
        ) from error
    locations = {
        entry.value
        for tensor in _tensors_of(model)
        if external.uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for location in sorted(locations):
        _check_inside(location, path)
    if not locations:
        return content
    external.load_external_data_for_model(model, str(path.parent))
    return bytes(model.SerializeToString())


def num_weights(content: bytes) -> int | None:
    """Floating-point numbers that a file holds in arrays; None without the `onnx` package.

    Those that its exporter has folded into others, as batch norms into convolutions, are no longer there.

    Args:
        content: Of the file, self-contained.
    """
    if importlib.util.find_spec("onnx") is None:
        return None
    import onnx  # noqa: PLC0415 - an extra

    kinds = onnx.TensorProto
    floats = {kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE}
    tensors = _tensors_of(onnx.load_model_from_string(content))
    return sum(math.prod(map(int, tensor.dims)) for tensor in tensors if tensor.dims and tensor.data_type in floats)


def _tensors_of(model: Any) -> Iterator[Any]:
    """All tensors of an ONNX model, whatever graph or attribute holds them."""
    from onnx import external_data_helper as external  # noqa: PLC0415 - an extra

    yield from external._get_all_tensors(model)  # noqa: SLF001 - the only walk over all of them


def _check_inside(location: str, path: Path) -> None:
    folder = path.parent.resolve()
    target = (folder / location).resolve()
    if not target.is_relative_to(folder):
        raise ModelError(
            f"the network reads its weights from {location!r}, outside its own folder",
            code="MD-015",
            title="Weights lie outside the model's folder",
            where=str(path),
            fix="copy the file into the folder and export again, or save the network with its weights inside",
        )
    if not target.is_file():
        raise ModelError(
            f"the network reads its weights from {location!r}, which is not there",
            code="MD-015",
            title="Weights lie outside the model's folder",
            where=str(path),
            fix="copy all files of the model into one folder",
        )
    if target.stat().st_nlink > 1:
        raise ModelError(
            f"the network reads its weights from {location!r}, a hard link: the file has another name elsewhere",
            code="MD-015",
            title="Weights lie outside the model's folder",
            where=str(path),
            fix=f"make it a copy of its own: cp '{location}' copy && mv copy '{location}'",
        )
