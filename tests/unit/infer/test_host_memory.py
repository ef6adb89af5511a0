"""How threads get memory from the C library."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

_COUNT = """
import ctypes, sys, threading
from pipeline.infer.host_memory import share_heap

if sys.argv[1] == "shared":
    share_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
all_there = threading.Barrier(12)

def take():
    libc.malloc(ctypes.c_size_t(100_000))
    all_there.wait()  # a thread that has ended leaves its heap to the next

threads = [threading.Thread(target=take) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps of threads are glibc's")
def test_threads_share_one_heap(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    heaps = {}
    for how in ("shared", "apart"):
        told = tmp_path / how
        subprocess.run(
            [sys.executable, "-c", _COUNT, how, str(told)], check=True, cwd=Path(__file__).parents[3], env=environment
        )
        heaps[how] = told.read_text().count("<heap nr")
    assert heaps["shared"] <= 3  # of threads that imported libraries started before
    assert heaps["apart"] >= 8
