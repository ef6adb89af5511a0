"""Shared set-up: Hypothesis profiles, the folder of real scenes, and isolation from the user's cache."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Two test processes share two cores: threads that wait must sleep, not spin. Before PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from hypothesis import HealthCheck, settings

from tests.commands import Cli

# Tests that import OpenVINO themselves report to nobody either; see `pipeline/model/openvino.py`.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: importing it fails

settings.register_profile(
    "ci", max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("dev", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("nightly", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = pytest.mark.skip(reason="slow; enable with --run-slow")
    real = pytest.mark.skip(reason=f"real scenes not found beside the checkout ({REAL_DATA.name}/)")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--run-slow"):
            item.add_marker(slow)
        if "real" in item.keywords and not REAL_DATA.is_dir():
            item.add_marker(real)


@pytest.fixture
def real_data() -> Path:
    """Folder of real scenes, labels and odd files; tests that use it are marked `real`."""
    if not REAL_DATA.is_dir():
        pytest.skip("real scenes not found beside the checkout")
    return REAL_DATA


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line in this process."""
    return Cli(monkeypatch, capsys)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep measured traits of test models out of the developer's own cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
