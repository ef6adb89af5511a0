"""The files that put scenemask into containers, read as plain values."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[3]
KUBERNETES = ROOT / "configs" / "kubernetes"
OVERLAYS = ("batch/cpu", "batch/gpu", "dask/cpu", "dask/gpu")


def lock_module() -> ModuleType:
    """`docker/lock.py`, which is a script."""
    spec = importlib.util.spec_from_file_location("lock", ROOT / "docker" / "lock.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tool(name: str) -> str:
    """Path of a program beside this Python or on PATH; skips where there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def built(overlay: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    command = [tool("kubectl"), "kustomize", str(KUBERNETES / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def written(part: str) -> list[dict[str, Any]]:
    """The resources of a base, as they are written."""
    files = sorted((KUBERNETES / part).glob("*.yaml"))
    return [yaml.safe_load(file.read_text()) for file in files if file.name != "kustomization.yaml"]


def pod_specs(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """Pods that a resource starts."""
    spec = resource["spec"]
    if resource["kind"] == "DaskCluster":
        return [spec["scheduler"]["spec"], spec["worker"]["spec"]]
    return [spec["template"]["spec"]] if resource["kind"] == "Job" else []


def compose() -> dict[str, Any]:
    """`docker/compose.yaml`, its anchors resolved."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    return loaded
