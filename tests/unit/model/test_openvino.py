"""What using OpenVINO leaves behind in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.model import openvino

ROOT = Path(__file__).resolve().parents[3]

CONVERTS_AND_RUNS = """
import sys
import torch
from pipeline.model.openvino import _core, read_graph

graph = read_graph(torch.nn.Conv2d(1, 1, 1).eval(), bands=1, key=None)
_core().compile_model(graph, "CPU")(torch.zeros(1, 1, 8, 8).numpy())
loaded = [name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module is not None]
print(loaded)
from pathlib import Path
print(Path(sys.argv[1]).exists())
# Without what holds it back, the package that lies there would be found.
sys.modules.pop("openvino_telemetry", None)
import openvino_telemetry
print(Path(sys.argv[1]).exists())
"""


@pytest.mark.skipif(not openvino.available(), reason="OpenVINO is not installed")
def test_telemetry_is_not_even_imported(tmp_path: Path) -> None:
    """Converting is what reports home; a package of that name stands in for Intel's, and notes that it was loaded."""
    package, mark = tmp_path / "path" / "openvino_telemetry", tmp_path / "reported"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package.parent), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", CONVERTS_AND_RUNS, str(mark)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["[]", "False", "True"], done.stderr
