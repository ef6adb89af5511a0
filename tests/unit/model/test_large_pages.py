"""Working memory of an engine in large pages."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import pytest

from pipeline.model import large_pages as module
from pipeline.model.large_pages import large_pages

_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_HERE = sys.platform == "linux" and _ENABLED.exists() and "[madvise]" in _ENABLED.read_text()


def _large_kb() -> int:
    """Memory of this process that lies in large pages."""
    found = re.search(r"AnonHugePages:\s+(\d+)", Path("/proc/self/smaps_rollup").read_text())
    return int(found[1]) if found else 0


def _taken(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


@pytest.mark.skipif(not _HERE, reason="the kernel gives large pages to nobody, or to all")
def test_memory_taken_meanwhile_comes_in_large_pages() -> None:
    size = 64 << 20
    with large_pages():
        inside = _taken(size)
    outside = _taken(size)
    before = _large_kb()
    for memory in (outside, inside):
        for at in range(0, size, 4096):
            memory[at] = 1
    grown = _large_kb() - before
    assert grown > 0.7 * size / 1024
    assert grown < 1.2 * size / 1024
    inside.close()
    outside.close()


def test_where_the_kernel_does_not_tell_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_MAPS", tmp_path / "none")
    monkeypatch.setattr(module.ctypes, "CDLL", lambda _: pytest.fail("no advice was to be given"))
    with large_pages():
        bytearray(8 << 20)
