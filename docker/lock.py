"""Write the lock files of the images: every package with its version and the hashes of its files.

`make lock` runs this with pip-tools. Both images are resolved at once, so that they differ in PyTorch only: on CUDA its
default wheel and the libraries that it names, on CPUs none of them, for PyTorch's CPU wheels lie in an index of their
own (docker/Dockerfile fetches one). What pip is configured to use here is left aside: users have the public index.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CPU, CUDA = ROOT / "docker" / "requirements-cpu.txt", ROOT / "docker" / "requirements-cuda.txt"

_NOT_IN_IMAGES = frozenset({"dev", "deploy-checks", "encoders"})
_TORCH_ON_CUDA = re.compile(r"(torch|triton|nvidia-.+|cuda-.+)$")
_FORBIDDEN = frozenset({"torchvision"})  # it breaks whatever imports it beside the CPU build
_HEADER = (
    "# Made by `make lock` for Python 3.11 on Linux; do not edit. Holds what any image may be built with (EXTRAS).\n"
)


def image_extras() -> list[str]:
    """Extras that an image can be built with: all but those for development."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return sorted(set(project["optional-dependencies"]) - _NOT_IN_IMAGES)


def parse(text: str) -> dict[str, str]:
    """Entries of a lock file by package name, each with its hashes."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    entries = re.split(r"\n(?=[A-Za-z0-9])", "\n".join(lines))
    return {entry.partition("==")[0]: entry for entry in entries}


def on_cpu(entries: dict[str, str]) -> dict[str, str]:
    """Without PyTorch, and without what only its CUDA build needs."""
    return {name: entry for name, entry in entries.items() if not _TORCH_ON_CUDA.match(name)}


def resolve() -> dict[str, str]:
    """Resolve the project and its build requirements with every image extra."""
    environment = {k: v for k, v in os.environ.items() if k not in {"PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"}}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lock.txt"
        command = [sys.executable, "-m", "piptools", "compile", "--quiet", "--generate-hashes", "--allow-unsafe"]
        command += ["--strip-extras", "--no-header", "--no-annotate", "--no-emit-options", "--no-emit-index-url"]
        command += ["--no-emit-trusted-host", "--no-emit-find-links", "--all-build-deps"]
        command += ["--pip-args=--use-feature=fast-deps"]  # reads the metadata of large wheels without fetching them
        command += [f"--extra={extra}" for extra in image_extras()]
        command += ["--constraint", "constraints.txt", "--output-file", str(out), "pyproject.toml"]
        subprocess.run(command, check=True, cwd=ROOT, env=environment | {"PIP_CONFIG_FILE": os.devnull})
        return parse(out.read_text())


def main() -> None:
    """Write both files."""
    entries = resolve()
    if found := _FORBIDDEN & set(entries):
        sys.exit(f"{', '.join(found)} must not be in an image: find out which package asks for it")
    for path, kept in ((CUDA, entries), (CPU, on_cpu(entries))):
        path.write_text(_HEADER + "\n".join(kept.values()) + "\n")


if __name__ == "__main__":
    main()
