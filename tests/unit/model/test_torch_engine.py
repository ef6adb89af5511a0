"""PyTorch's settings for the whole process: each engine computes with its own, whatever was made since."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from pipeline.model import EngineSpec
from pipeline.model.torch_engine import TorchEngine

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Watcher(nn.Module):
    """Notes what it is computed with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        backends = torch.backends
        self.seen.append(
            (
                backends.cudnn.allow_tf32,
                backends.cuda.matmul.allow_tf32,
                torch.are_deterministic_algorithms_enabled(),
            )
        )
        return x


@pytest.fixture
def settings_restored() -> Iterator[None]:
    backends = torch.backends
    before = backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark = before
    torch.use_deterministic_algorithms(deterministic)


def _engine_as_on_a_gpu(precision: str, *, deterministic: bool) -> tuple[TorchEngine, _Watcher]:
    spec = EngineSpec(
        backend="torch", device="cpu", precision=precision, threads=1, one_size=False, deterministic=deterministic
    )
    engine = TorchEngine(_Watcher(), spec)
    engine._on_gpu = True
    watcher = next(module for module in engine._network.modules() if isinstance(module, _Watcher))
    return engine, watcher


@pytest.mark.usefixtures("settings_restored")
def test_float32_is_not_rounded_to_tf32_because_a_faster_engine_was_made_since() -> None:
    """What bfloat16 is compared with would else not be float32."""
    exact, seen_exact = _engine_as_on_a_gpu("float32", deterministic=True)
    fast, seen_fast = _engine_as_on_a_gpu("bfloat16", deterministic=False)
    for _ in range(2):
        exact.run(torch.zeros(1, 2, 16, 16))
        fast.run(torch.zeros(1, 2, 16, 16))
    assert seen_exact.seen == [(False, False, True)] * 2
    assert seen_fast.seen == [(True, True, False)] * 2
