"""Compiled loops, called by themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from pipeline.vector import boundary_kernels, compiled
from pipeline.vector.pieces import Cells, Pieces


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.integers(0, 2)), st.booleans()
)
def test_labels_are_those_of_scipy_in_the_order_of_first_pixels(block: Any, masked: bool) -> None:  # noqa: FBT001
    wanted = block != 2 if masked else None
    pieces = Pieces.of(Cells(block, wanted))
    apron, values = pieces.apron(), pieces.values
    labels = apron[1:-1, 1:-1]
    assert (apron[0] == 0).all()
    assert (apron[:, -1] == 0).all()
    first = [int(np.flatnonzero(labels.ravel() == number)[0]) for number in range(1, len(values))]
    assert first == sorted(first)
    count = 0
    for value in (0, 1) if masked else (0, 1, 2):
        reference, found = ndimage.label(block == value)
        count += found
        for number in range(1, found + 1):
            here = labels[reference == number]
            assert (here == here[0]).all()
            assert values[here[0]] == value
            assert (labels == here[0]).sum() == here.size
    assert len(values) - 1 == count
    assert ((labels > 0) == (wanted if wanted is not None else True)).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, ">u2"])
def test_any_integer_type_is_labelled(dtype: Any) -> None:
    values = Pieces.of(Cells(np.array([[1, 1], [2, 1]], dtype), None)).values
    assert values[1:].tolist() == [1, 2]


def test_without_a_place_to_keep_them_loops_are_compiled_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def njit(*, nogil: bool, cache: bool = False) -> Any:
        asked.append((nogil, cache))
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(compiled, "njit", njit)
    assert compiled.compiled(len)([1, 2]) == 2
    assert asked == [(True, True), (True, False)]


def test_cycles_of_a_permutation() -> None:
    members, ends = boundary_kernels.cycles(np.array([2, 1, 4, 0, 3]))
    assert members.tolist() == [0, 2, 4, 3, 1]
    assert ends.tolist() == [4, 5]
