"""What this process holds of the host's memory, on Linux."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def give_back_freed() -> None:
    """Return to the system what was freed and the C library keeps for later; nothing where it cannot."""
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
