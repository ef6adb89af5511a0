"""What `run.json` keeps of memory."""

from __future__ import annotations

import pytest
import torch

from pipeline.run.record import device_peak_bytes


@pytest.mark.parametrize(
    ("device", "used", "told"), [("cpu", True, None), ("cuda", False, None), ("cuda", True, 123_456)]
)
def test_a_gpu_s_peak_is_told_where_this_process_had_it(
    monkeypatch: pytest.MonkeyPatch, device: str, *, used: bool, told: int | None
) -> None:
    """Beside what was predicted (`plan.device_memory_bytes`)."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123_456)
    assert device_peak_bytes(device) == told
