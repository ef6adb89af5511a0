"""What is done to a network's graph before OpenVINO compiles it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.model.foreign import OnnxNetwork


_RANK = 4


def from_onnx(network: OnnxNetwork, bands: int, *, read: Callable[[bytes, bytes], Any]) -> Any:
    """The file's graph with the layout and the one output that we use; `read` is the library's reader."""
    import openvino  # noqa: PLC0415 - an extra
    from openvino import opset13 as op  # noqa: PLC0415 - an extra

    graph = read(network.content, b"")
    outputs = [node.get_node().input_value(0) for node in graph.outputs]
    output = outputs[_position(network, [node.get_any_name() for node in graph.outputs], outputs)]
    parameters = graph.get_parameters()
    if network.io.layout == "channels_last":
        source = op.parameter([1, bands, -1, -1], dtype=np.float32)
        turned = op.transpose(source, op.constant([0, 2, 3, 1], dtype=np.int64))
        parameters[0].output(0).replace(turned.output(0))
        parameters = [source]
        output = op.transpose(output, op.constant([0, 3, 1, 2], dtype=np.int64)).output(0)
    made = openvino.Model([op.result(output)], parameters, "network")
    if network.fixed_side is None:
        made.reshape([1, bands, -1, -1])
    return made


def _position(network: OnnxNetwork, names: list[str], outputs: list[Any]) -> int:
    """Which output counts, as `ForeignNetwork` has it."""
    wanted = network.io.output
    if isinstance(wanted, int):
        return wanted
    if wanted is not None:
        return names.index(wanted)
    return next(i for i, output in enumerate(outputs) if output.get_partial_shape().rank.get_length() == _RANK)


def sum_instead_of_join(graph: Any) -> Any:
    """The graph with each convolution of joined channels as a sum of convolutions: the join itself is never made.

    What a skip connection brings is then read where it lies. In place of copying all channels to one place, which took
    most of the time that was not arithmetic, the second convolution adds to what the first one wrote.
    """
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Convolution" and (channels := _worth_splitting(node)):
            _split(node, channels)
    graph.validate_nodes_and_infer_types()
    return graph


def _worth_splitting(convolution: Any) -> list[int]:
    """Channels of each part, where the sums move no more values than the join and it serves nobody else; else none."""
    joined, weights = (convolution.input_value(i).get_node() for i in range(2))
    if joined.get_type_name() != "Concat" or weights.get_type_name() != "Constant":
        return []
    channels = _channels(joined)
    alone = len(joined.output(0).get_target_inputs()) == 1
    along = joined.get_axis() in {1, 1 - _RANK}
    few = len(channels) * weights.get_output_shape(0)[0] <= sum(channels)
    return channels if alone and along and few else []


def _channels(joined: Any) -> list[int]:
    """Of each part; none where that is open."""
    shapes = [part.get_partial_shape() for part in joined.inputs()]
    if any(shape.rank.is_dynamic or shape[1].is_dynamic for shape in shapes):
        return []
    return [shape[1].get_length() for shape in shapes]


def _split(convolution: Any, channels: list[int]) -> None:
    from openvino import opset13 as op  # noqa: PLC0415 - an extra

    joined = convolution.input_value(0).get_node()
    kernel, how = convolution.input_value(1).get_node().data, convolution.get_attributes()
    parts = [
        op.convolution(
            joined.input_value(i),
            op.constant(np.ascontiguousarray(part)),
            how["strides"],
            how["pads_begin"],
            how["pads_end"],
            how["dilations"],
            how["auto_pad"],
        )
        for i, part in enumerate(np.split(kernel, np.cumsum(channels)[:-1], axis=1))
    ]
    total, replaced = parts[0], convolution
    bias = _bias_after(convolution)
    if bias is not None:  # with the first part, where it costs nothing
        replaced, constant = bias
        total = op.add(total, constant)
    for part in parts[1:]:
        total = op.add(total, part)
    total.set_friendly_name(replaced.get_friendly_name())
    replaced.output(0).replace(total.output(0))


def _bias_after(convolution: Any) -> tuple[Any, Any] | None:
    """(the addition, its constant) that follows alone; None where there is none."""
    users = list(convolution.output(0).get_target_inputs())
    if len(users) != 1 or users[0].get_node().get_type_name() != "Add":
        return None
    addition = users[0].get_node()
    other = addition.input_value(1 - users[0].get_index())
    return (addition, other) if other.get_node().get_type_name() == "Constant" else None
