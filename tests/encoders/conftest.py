"""Torchvision exists for CUDA only; beside a PyTorch for CPUs it needs to be told of two operators to be imported."""

from __future__ import annotations

import importlib.util

import pytest
import torch

_KEPT = []
if importlib.util.find_spec("torchvision") and torch.version.cuda is None:
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs the package."""
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        skip = pytest.mark.skip(reason="segmentation-models-pytorch is not installed; see `make test-encoders`")
        for item in items:
            if "encoders" in item.nodeid:
                item.add_marker(skip)
