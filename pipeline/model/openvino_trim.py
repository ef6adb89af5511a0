"""Leaves out of any network's graph what only outputs in the halo need, as our own U-Net does by itself.

From the output backwards each operation tells how far from the rim its inputs are of no use: a 3x3 convolution one
pixel less than its output, an upsampling half as far. From the input forwards, tensors are then cut where that is worth
a copy. What is kept is computed as before, by the same operations; an operation that is not known here, or that looks
at the whole image, is given its inputs whole.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

_LEAST_CUT_PX = 4
"""Cutting less costs more than it saves."""
_RANK = 4
_SPATIAL = 2, 3


def leave_out(graph: Any, trim_px: int) -> int:
    """Change a graph so that it does not compute what only its outermost outputs depend on.

    Args:
        graph: One input `(batch, band, y, x)`, one output `(batch, class, y', x')`.
        trim_px: Outputs on each side that nobody needs.

    Returns:
        Outputs on each side that are now missing, at most `trim_px`.
    """
    nodes = graph.get_ordered_ops()
    useless = _useless(nodes, trim_px)
    begins: dict[_Tensor, int] = {}
    for node in nodes:
        reach = _reach(node)
        if reach is not None and (unused := useless.get(_Tensor.of(node.output(0)), 0)) > 0:
            begins[_Tensor.of(node.output(0))] = _cut_inputs(node, reach, unused, begins)
    graph.validate_nodes_and_infer_types()
    [result] = graph.get_results()
    return begins.get(_Tensor.of(result.input_value(0)), 0)


class _Tensor(NamedTuple):
    """One output of one node, by name."""

    node: str
    place: int

    @classmethod
    def of(cls, output: Any) -> _Tensor:
        return cls(output.get_node().get_name(), output.get_index())


class _Reach(NamedTuple):
    """How an operation's output depends on its surroundings."""

    inputs: list[int]
    """Those that are images; the others are the same whatever is cut."""
    looks_at: Callable[[int], int]
    """Outermost pixels of the inputs that are of no use, where so many of the output are not; may be negative."""
    step: int = 1
    """Input pixels per output pixel: cuts are multiples of it."""
    growth: int = 1
    """Output pixels per input pixel."""
    worth_a_cut: bool = True
    """Whether its work is more than a copy of its input."""

    def inputs_unused(self, unused: int) -> int:
        """Outermost pixels that can be cut from the inputs, where so many of the output are of no use."""
        return max(0, self.looks_at(unused)) // self.step * self.step if unused > 0 else 0


def _useless(nodes: list[Any], trim_px: int) -> dict[_Tensor, int]:
    """Outermost pixels of each tensor that no operation needs; a tensor that is not in it is needed whole."""
    useless: dict[_Tensor, int] = {}
    reach: _Reach | None
    for node in reversed(nodes):  # all that use it have been seen
        if node.get_type_name() == "Result":
            reach, unused = _Reach([0], lambda px: px), trim_px
        else:
            reach, unused = _reach(node), useless.get(_Tensor.of(node.output(0)), 0)
        for place, value in enumerate(node.input_values()):
            needless = reach.inputs_unused(unused) if reach is not None and place in reach.inputs else 0
            source = _Tensor.of(value)
            useless[source] = min(useless.get(source, needless), needless)
    return useless


def _cut_inputs(node: Any, reach: _Reach, unused: int, begins: dict[_Tensor, int]) -> int:
    """Cut a node's inputs as far as that pays, and all alike; returns where its output then begins."""
    most = reach.inputs_unused(unused)
    have = [begins.get(_Tensor.of(node.input_value(place)), 0) for place in reach.inputs]
    # What has been cut by an odd number cannot stay so where two pixels become one.
    least = -(-max(have) // reach.step) * reach.step
    must = min(have) < least  # then all may as well be cut as far as they can be
    begin = most if (must or reach.worth_a_cut) and most - least >= _LEAST_CUT_PX else least
    for place, already in zip(reach.inputs, have, strict=True):
        if already < begin:
            node.input(place).replace_source_output(_without_rim(node.input_value(place), begin - already))
    return begin // reach.step * reach.growth


def _without_rim(value: Any, px: int) -> Any:
    from openvino import opset13 as op  # noqa: PLC0415 - an extra

    first, last, step, axes = ([px] * 2, [-px] * 2, [1] * 2, list(_SPATIAL))
    return op.slice(value, *(np.array(numbers, np.int64) for numbers in (first, last, step, axes))).output(0)


def _reach(node: Any) -> _Reach | None:
    """How a node depends on its surroundings; None where that is not known, or on all of its input."""
    kind = node.get_type_name()
    if kind in _PIXEL_BY_PIXEL:
        return _pixel_by_pixel(node)
    if kind in _BY_CHANNEL:
        along = node.get_attributes()["axis"] in {1, 1 - _RANK}
        if not along or not _is_image(node.output(0)):
            return None
        return _Reach(list(range(node.get_input_size())), lambda px: px, worth_a_cut=False)
    if kind in _WINDOWS:
        return _window(node)
    if kind in {"ConvolutionBackpropData", "GroupConvolutionBackpropData"}:
        return _transposed(node)
    return _interpolation(node) if kind == "Interpolate" else None


_PIXEL_BY_PIXEL = {
    "Abs", "Add", "BatchNormInference", "Clamp", "Convert", "Divide", "Elu", "Exp", "Gelu", "HSigmoid", "HSwish",
    "HardSigmoid", "Maximum", "Minimum", "Mish", "Multiply", "Negative", "PRelu", "Relu", "Sigmoid", "SoftPlus", "Sqrt",
    "Subtract", "Swish", "Tanh",
}  # fmt: skip
_BY_CHANNEL = {"Concat", "Softmax", "LogSoftmax"}
_WINDOWS = {"Convolution", "GroupConvolution", "MaxPool", "AvgPool"}


def _is_image(value: Any) -> bool:
    """Whether a tensor has rows and columns; one value for all of them is no image."""
    shape = value.get_partial_shape()
    if shape.rank.is_dynamic or shape.rank.get_length() != _RANK:
        return False
    return not all(shape[axis].is_static and shape[axis].get_length() == 1 for axis in _SPATIAL)


def _pixel_by_pixel(node: Any) -> _Reach | None:
    values = node.input_values()
    images = [place for place, value in enumerate(values) if _is_image(value)]
    if not images or any(values[place].get_node().get_type_name() == "Constant" for place in images):
        return None  # a constant with rows and columns would have to be cut too
    return _Reach(images, lambda px: px, worth_a_cut=False)


def _window(node: Any) -> _Reach | None:
    """Convolution or pooling whose output is its input's size over the stride."""
    how = node.get_attributes()
    pooling = node.get_type_name() in {"MaxPool", "AvgPool"}
    size = list(how["kernel"]) if pooling else _sides(node.input_value(1))
    strides, dilations = list(how["strides"]), list(how.get("dilations", [1, 1]))
    begin, end = list(how["pads_begin"]), list(how["pads_end"])
    if size is None or _uneven(size, strides, dilations, begin, end):
        return None
    stride, span, pad = int(strides[0]), int((size[0] - 1) * dilations[0]), int(begin[0])
    automatic = str(how.get("auto_pad", "explicit")).lower()
    if automatic.startswith("same") and stride == 1 and span % 2 == 0:
        pad = span // 2
    elif automatic not in {"explicit", "notset"}:
        return None
    if not -stride <= 2 * pad - span - 1 < 0:
        return None

    def unused(px: int) -> int:
        return min(stride * px - pad, stride * px + stride - 1 + pad - span)

    return _Reach([0], unused, step=stride)


def _transposed(node: Any) -> _Reach | None:
    """Transposed convolution whose output is its input's size times the stride."""
    how, size = node.get_attributes(), _sides(node.input_value(1))
    strides, dilations, extra = (list(how[name]) for name in ("strides", "dilations", "output_padding"))
    begin, end = list(how["pads_begin"]), list(how["pads_end"])
    if size is None or node.get_input_size() > _WITHOUT_SHAPE or _uneven(size, strides, dilations, begin, end, extra):
        return None
    if str(how["auto_pad"]).lower() not in {"explicit", "notset"}:
        return None
    stride, span, pad = int(strides[0]), int((size[0] - 1) * dilations[0]), int(begin[0])
    if span + 1 - stride - 2 * pad + extra[0] != 0:
        return None

    def unused(px: int) -> int:
        return min(-(-(px + pad - span) // stride), -(-(px + 1 - pad) // stride) - 1)

    return _Reach([0], unused, growth=stride)


_WITHOUT_SHAPE = 2
"""Inputs of a transposed convolution that is not told the shape of its output."""


def _sides(weights: Any) -> list[int] | None:
    """Height and width of a kernel."""
    shape = weights.get_partial_shape()
    return [shape[-2].get_length(), shape[-1].get_length()] if shape.is_static else None


def _uneven(size: list[int], strides: list[int], dilations: list[int], begin: list[int], *others: list[int]) -> bool:
    """Whether rows and columns, or the two ends of one, are treated differently."""
    end, *more = others
    return begin != end or any(len(set(both)) != 1 for both in (size, strides, dilations, begin, *more))


def _interpolation(node: Any) -> _Reach | None:
    """Enlargement by a whole number that is part of the graph, with weights that depend on the phase only."""
    how = node.get_attributes()
    by_scales = how["shape_calculation_mode"] == "scales"
    by_phase = how["coordinate_transformation_mode"] != "align_corners"
    padded = any([*how["pads_begin"], *how["pads_end"]]) or how["antialias"]
    if not by_scales or not by_phase or padded or how["mode"] not in _INTERPOLATION_REACH:
        return None
    scales = _scales(node)
    if scales is None or len(set(scales)) != 1 or scales[0] != int(scales[0]) or scales[0] < 1:
        return None
    factor, reach = int(scales[0]), _INTERPOLATION_REACH[how["mode"]]
    return _Reach([0], lambda px: px // factor - reach, growth=factor)


_INTERPOLATION_REACH = {"nearest": 1, "linear": 1, "linear_onnx": 1, "cubic": 2}


def _scales(node: Any) -> list[float] | None:
    """Of rows and columns; None where they are computed, or where anything else is scaled."""
    places = {3: (1, 2), 4: (2, 3)}.get(node.get_input_size())  # scales and axes, by the operation's version
    if places is None:
        return None
    scales, axes = (node.input_value(place).get_node() for place in places)
    if {scales.get_type_name(), axes.get_type_name()} != {"Constant"}:
        return None
    by_axis = dict(zip((int(axis) for axis in axes.data), (float(scale) for scale in scales.data), strict=True))
    if any(not math.isclose(scale, 1.0) for axis, scale in by_axis.items() if axis not in _SPATIAL):
        return None
    return [by_axis.get(axis, 1.0) for axis in _SPATIAL]


def crop_by_padding(graph: Any) -> Any:
    """The graph with each cut before a transposed convolution as that convolution's padding.

    Padding leaves outputs out, and what they would have come from is never read: what is kept is then read where it
    lies. The cut itself is a copy; together they are 3 to 4 % of a forward.
    """
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "ConvolutionBackpropData" and _reads_once(node):
            _crop(node)
    graph.validate_nodes_and_infer_types()
    return graph


def _reads_once(transposed: Any) -> bool:
    """Whether outputs are of one input each, so that what is cut has no part in what is kept.

    Steps of one are left out: inside the library that is a common convolution, which cannot be padded to crop.
    """
    how = transposed.get_attributes()
    weights = transposed.input_value(1).get_partial_shape()
    explicit = str(how["auto_pad"]).lower() in {"explicit", "notset"} and transposed.get_input_size() == _WITHOUT_SHAPE
    if weights.is_dynamic or weights.rank.get_length() != _RANK or not explicit or set(how["dilations"]) != {1}:
        return False
    sides = [weights[axis].get_length() for axis in _SPATIAL]
    each = zip(sides, how["output_padding"], how["strides"], strict=True)
    return all(step > 1 and side + extra <= step for side, extra, step in each)


def _crop(transposed: Any) -> None:
    from openvino import opset13 as op  # noqa: PLC0415 - an extra

    cut = transposed.input_value(0).get_node()
    rims = _rims(cut)
    if rims is None:
        return
    how = transposed.get_attributes()
    first, last = (
        [pad + step * px for pad, step, px in zip(how[name], how["strides"], side, strict=True)]
        for name, side in zip(("pads_begin", "pads_end"), rims, strict=True)
    )
    made = op.convolution_backprop_data(
        cut.input_value(0),
        transposed.input_value(1),
        how["strides"],
        pads_begin=first,
        pads_end=last,
        dilations=how["dilations"],
        output_padding=how["output_padding"],
    )
    made.set_friendly_name(transposed.get_friendly_name())
    transposed.output(0).replace(made.output(0))


def _rims(cut: Any) -> tuple[list[int], list[int]] | None:
    """Rows and columns that a slice takes off, (first, last); None where it is no slice, or takes off anything else."""
    constants = [value.get_node() for value in cut.input_values()[1:]]
    if cut.get_type_name() != "Slice" or any(node.get_type_name() != "Constant" for node in constants):
        return None
    starts, stops, steps, axes = ([int(v) for v in node.data] for node in constants)
    if set(steps) != {1} or not set(axes) <= set(_SPATIAL) or min(starts) < 0 or max(stops) >= 0:
        return None
    first, last = (dict(zip(axes, side, strict=True)) for side in (starts, stops))
    return [first.get(axis, 0) for axis in _SPATIAL], [-last.get(axis, 0) for axis in _SPATIAL]
