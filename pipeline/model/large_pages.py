"""Large pages for the memory that a library takes for itself.

A forward writes to every page of its working memory. In pages of 4 KiB the kernel is entered 250 000 times per
gigabyte, which takes as long as a small forward; in pages of 2 MiB 500 times. NumPy asks for them where it allocates;
other libraries leave it to whoever starts the process (https://docs.kernel.org/admin-guide/mm/transhuge.html).
"""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAPS = Path("/proc/self/maps")
_MADV_HUGEPAGE = 14
_LEAST_BYTES = 2 << 20


@contextlib.contextmanager
def large_pages() -> Iterator[None]:
    """Ask for large pages for what is allocated meanwhile and not yet written to; does nothing where there are none.

    Advice only: an administrator's setting for the machine (`never`) is kept, and no memory is taken for it.
    """
    before = _allocated()
    yield
    if not before:
        return
    libc = ctypes.CDLL(None)
    for start, stop in _allocated() - before:
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_HUGEPAGE)


def _allocated() -> set[tuple[int, int]]:
    """(start, stop) of this process's larger pieces of private memory; empty where the kernel does not tell."""
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return set()
    found = set()
    for line in lines:
        addresses, permissions, _, _, inode, *name = line.split(maxsplit=5)
        start, stop = (int(address, 16) for address in addresses.split("-"))
        if permissions == "rw-p" and inode == "0" and not name and stop - start >= _LEAST_BYTES:
            found.add((start, stop))
    return found
