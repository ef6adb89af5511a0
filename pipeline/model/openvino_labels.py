"""The decision inside OpenVINO's graph: one byte per pixel comes out, and logits never leave the caches."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.model.decision import NOT_FINITE, output_thresholds

if TYPE_CHECKING:
    from pipeline.model.spec import ModelSpec

_STRIP_BYTES = 8 << 20
"""Of a strip's outputs in float32: they stay in the caches (ADR 5)."""
_MOST_STRIPS = 128
"""Each is compiled on its own, in 2 ms."""
_OF_EACH_VALUE = {"Clamp", "Convert", "Elu", "Relu", "Sigmoid"}
_ALONG_AN_AXIS = {"LogSoftmax", "Softmax"}
_WITH_A_CONSTANT = {"Add", "Divide", "Multiply", "Subtract"}
_CHANNELS = {1, -3}
"""Axis of an image `(batch, channel, y, x)`."""


def with_labels(graph: Any, spec: ModelSpec) -> Any:
    """The graph with labels as its output, `(1, 1 or class, y, x)` uint8; the one that is given is used up.

    Where a network's last convolution makes more channels than it is given, as with many classes, it and the decision
    run strip by strip: memory for one strip of all classes is enough, however many there are. For that the graph's
    size must be set.

    Args:
        graph: Ends in the network's outputs.
        spec: What makes classes of them.
    """
    import openvino  # noqa: PLC0415 - an extra
    from openvino import opset13 as op  # noqa: PLC0415 - an extra

    parameters, output = graph.get_parameters(), graph.outputs[0].get_node().input_value(0)
    head, label = _head(output), _label(output, spec)
    if head is not None and (strips := _num_strips(output)) > 1:
        label = _strip_by_strip(head, label, strips)
    made = openvino.Model([op.result(label)], parameters, "labels")
    made.validate_nodes_and_infer_types()
    return made


def _label(output: Any, spec: ModelSpec) -> Any:
    from openvino import opset13 as op  # noqa: PLC0415 - an extra

    channel = op.constant([1], dtype=np.int64)
    if spec.thresholds:
        cuts = np.array(output_thresholds(spec), np.float32).reshape(1, -1, 1, 1)
        classes = op.greater_equal(output, op.constant(cuts)).output(0)
    else:
        best = op.topk(output, op.constant(1, dtype=np.int64), 1, "max", "none", index_element_type="i32")
        classes = best.output(1)
    # The sum of a pixel's outputs is finite exactly where all of them are.
    finite = op.is_finite(op.reduce_sum(output, channel, keep_dims=True))
    return op.select(finite, op.convert(classes, "u8"), op.constant(NOT_FINITE, dtype=np.uint8)).output(0)


def _head(output: Any) -> Any | None:
    """The convolution that makes each pixel's outputs of fewer values of that pixel alone; None where there is none."""
    node = output.get_node()
    while node.get_type_name() != "Convolution":
        image = _image_of(node)
        if image is None:
            return None
        node = image.get_node()
    how = node.get_attributes()
    alone = not any((*how["pads_begin"], *how["pads_end"])) and set(how["strides"]) == {1}
    outputs, inputs, *kernel = node.get_input_shape(1) if node.input(1).get_partial_shape().is_static else (0, 0, 0)
    return node if alone and set(kernel) == {1} and outputs > inputs else None


def _image_of(node: Any) -> Any | None:
    """What an operation on each pixel's values is applied to; None where it is another kind, or unknown."""
    name, inputs = node.get_type_name(), node.input_values()
    if name in _ALONG_AN_AXIS:
        return inputs[0] if node.get_attributes()["axis"] in _CHANNELS else None
    if name in _OF_EACH_VALUE:
        return inputs[0]
    if name not in _WITH_A_CONSTANT:
        return None
    constants = [value.get_node().get_type_name() == "Constant" for value in inputs]
    if sum(constants) != 1:
        return None
    constant, image = inputs[constants.index(True)], inputs[constants.index(False)]
    return image if all(side == 1 for side in tuple(constant.get_shape())[-2:]) else None


def _num_strips(output: Any) -> int:
    """As many as keep a strip's outputs in the caches; one where the size is open."""
    if output.get_partial_shape().is_dynamic:
        return 1
    channels, height, width = (int(n) for n in tuple(output.get_shape())[1:])
    return min(_MOST_STRIPS, height, -(-4 * channels * height * width // _STRIP_BYTES))


def _strip_by_strip(head: Any, label: Any, strips: int) -> Any:
    """The label, each strip of it made of a strip of what the head is given.

    Every strip has constants of its own: OpenVINO adds a bias inside the convolution only where nobody else adds it.
    """
    import openvino  # noqa: PLC0415 - an extra
    from openvino import opset13 as op  # noqa: PLC0415 - an extra

    values = head.input_value(0)
    source = op.parameter(values.get_partial_shape(), values.get_element_type())
    head.input(0).replace_source_output(source.output(0))
    tail = openvino.Model([op.result(label)], [source])
    height = values.get_shape()[2]
    rows = math.ceil(height / strips)
    lengths = [min(rows, height - row) for row in range(0, height, rows)]
    parts = op.variadic_split(values, op.constant(2, dtype=np.int64), op.constant(lengths, dtype=np.int64))
    made = []
    for part in parts.outputs():
        one = tail.clone()
        one.get_parameters()[0].output(0).replace(part)
        made.append(one.outputs[0].get_node().input_value(0))
    return op.concat(made, 2).output(0)
