"""`make bench-peers`: the same weights on the same scene through other ways of doing it, each a process of its own.

python -m tests.bench.peers [--size 8192] [--seam-size 2048] [--repeats 1] [--only ours,hand,grid]

Peers that want libraries which must not enter the main environment (torchvision) run in one of their own:
    python -m venv bench-out/peers-venv
    bench-out/peers-venv/bin/pip install -c constraints.txt -e ".[openvino]" monai onnx onnxscript torchgeo requests
    geodeep terratorch geoai-py

A peer is what its users would write with its defaults; seconds and memory are those of its whole process, imports and
compilation included, caches warm. Seam error is the share of pixels whose class differs from one whole forward, farther
from nodata than the halo: peers give nodata to the network as it is.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.shutil
from scipy import ndimage

from tests.bench.common import OUT, cpu, publish, scene_of, trained_unet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

_PATCH = 512
_HALO = 96
_CORE = 2048


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way to segment the scene."""

    name: str
    run: Callable[[Path, Path, Path], None] | None = None
    """(scene, model folder, mask to write); None: it is `scenemask segment`, as a user would call it."""
    precision: str | None = "float32"
    """What it computes in; None: what ours chooses by itself."""
    needs: str = "torch"
    """Module without which it is left out."""
    same_input: bool = True
    """False where it cannot be given the scene's four bands, so that its classes are not comparable."""


def _write(path: Path, scene: Path, mask: NDArray[np.uint8]) -> None:
    with rasterio.open(scene) as source:
        profile = {"crs": source.crs, "transform": source.transform, "nodata": 255}
    height, width = mask.shape
    with (
        rasterio.MemoryFile() as memory,
        memory.open(driver="GTiff", height=height, width=width, count=1, dtype="uint8", **profile) as out,
    ):
        out.write(mask, 1)
        rasterio.shutil.copy(out, path, driver="COG", compress="DEFLATE", resampling="MODE", num_threads="ALL_CPUS")


def _network(model: Path) -> Any:
    import torch

    import pipeline as sm

    torch.set_grad_enabled(False)
    return sm.load_model(model).network


def _constants(model: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each band `(band, 1, 1)`, as the network was trained on."""
    scaling = json.loads((model / "model.json").read_text())["properties"]["scenemask:model"]["scaling"]
    mean, std = (np.array(scaling[name], np.float32)[:, None, None] for name in ("mean", "std"))
    return mean, std


def _scaled(block: NDArray[Any], model: Path) -> Any:
    import torch

    mean, std = _constants(model)
    return torch.from_numpy((block.astype(np.float32) - mean) / std)[None]


def hand_written(scene: Path, model: Path, mask: Path, *, precision: str = "bf16") -> None:
    """The least code that does the same on the same library: no validity, no resumption, mirrored at the rim."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino
    import torch
    from openvino import opset13 as op

    side = _CORE + 2 * _HALO
    mean, std = _constants(model)
    graph = openvino.convert_model(_network(model), example_input=torch.zeros(1, 4, 256, 256))
    graph.reshape([1, 4, side, side])
    logits = graph.outputs[0].get_node().input_value(0)
    top = op.topk(logits, op.constant(1), axis=1, mode="max", sort="none", index_element_type="i32")
    graph = openvino.Model([op.result(op.convert(top.output(1), "u8"))], graph.get_parameters(), "labels")
    config = {"INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": os.cpu_count()}
    request = openvino.Core().compile_model(graph, "CPU", config).create_infer_request()
    with rasterio.open(scene) as source:
        made = np.empty(source.shape, np.uint8)
        for row in range(0, source.height, _CORE):
            for col in range(0, source.width, _CORE):
                rows, cols = (row - _HALO, row + _CORE + _HALO), (col - _HALO, col + _CORE + _HALO)
                inner = [max(rows[0], 0), min(rows[1], source.height), max(cols[0], 0), min(cols[1], source.width)]
                block = source.read(window=((inner[0], inner[1]), (inner[2], inner[3])))
                pad = ((0, 0), (inner[0] - rows[0], rows[1] - inner[1]), (inner[2] - cols[0], cols[1] - inner[3]))
                block = np.pad(block, pad, mode="reflect")
                x = (block.astype(np.float32) - mean) / std
                request.infer([x[None]])
                labels = request.get_output_tensor(0).data[0, 0, _HALO:-_HALO, _HALO:-_HALO]
                here = made[row : row + _CORE, col : col + _CORE]
                here[:] = labels[: here.shape[0], : here.shape[1]]
    _write(mask, scene, made)


def grid_loop(scene: Path, model: Path, mask: Path, *, overlap: int = 0) -> None:
    """Patches of a grid through eager PyTorch in batches of four; `overlap` pixels on each side are thrown away."""
    import torch

    network, step = _network(model), _PATCH - 2 * overlap
    with rasterio.open(scene) as source:
        data = np.pad(source.read(), ((0, 0), (overlap, _PATCH), (overlap, _PATCH)), mode="reflect")
        made = np.empty(source.shape, np.uint8)
    places = [(r, c) for r in range(0, made.shape[0], step) for c in range(0, made.shape[1], step)]
    for start in range(0, len(places), 4):
        batch = places[start : start + 4]
        x = torch.cat([_scaled(data[:, r : r + _PATCH, c : c + _PATCH], model) for r, c in batch])
        labels = network(x).argmax(1).to(torch.uint8).numpy()
        for (r, c), patch in zip(batch, labels, strict=True):
            here = made[r : r + step, c : c + step]
            here[:] = patch[overlap : overlap + here.shape[0], overlap : overlap + here.shape[1]]
    _write(mask, scene, made)


def grid_loop_exact(scene: Path, model: Path, mask: Path) -> None:
    """The same with the halo that the network needs, which its user would have to know."""
    grid_loop(scene, model, mask, overlap=_HALO)


def monai(scene: Path, model: Path, mask: Path) -> None:
    """`sliding_window_inference` with Gaussian weights and half of each patch shared, as its examples have it."""
    from monai.inferers import sliding_window_inference

    with rasterio.open(scene) as source:
        x = _scaled(source.read(), model)
    network = _network(model)
    scores = sliding_window_inference(x, (_PATCH, _PATCH), 4, network, overlap=0.5, mode="gaussian")
    _write(mask, scene, scores[0].argmax(0).numpy().astype(np.uint8))


def map_overlap(scene: Path, model: Path, mask: Path) -> None:
    """Dask's `map_overlap` with chunks of 2048 and the halo that its user would have to know, eager PyTorch."""
    import dask.array as da

    network = _network(model)
    with rasterio.open(scene) as source:
        data = da.from_array(source.read(), chunks=(-1, _CORE, _CORE))

    def classes(block: NDArray[Any]) -> NDArray[np.uint8]:
        return np.asarray(network(_scaled(block, model))[0].argmax(0).numpy().astype(np.uint8))[None]

    depth = (0, _HALO, _HALO)
    made = data.map_overlap(classes, depth=depth, boundary="reflect", chunks=((1,), *data.chunks[1:]), dtype=np.uint8)
    _write(mask, scene, made.compute()[0])


@functools.cache
def _let_torchvision_in() -> Any:
    """Its CUDA build beside PyTorch for the CPU: what it finds no code for has to be known by name, as long as this."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    if not hasattr(torch.ops.torchvision, "nms"):
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def terratorch(scene: Path, model: Path, mask: Path) -> None:
    """terratorch's `tiled_inference` with its defaults: chips of 224 px every 192, 8 px dropped, batches of 16."""
    _let_torchvision_in()
    from terratorch.tasks.tiled_inference import tiled_inference

    with rasterio.open(scene) as source:
        x = _scaled(source.read(), model)
    scores = tiled_inference(_network(model), x)
    _write(mask, scene, scores[0].argmax(0).numpy().astype(np.uint8))


def geoai(scene: Path, model: Path, mask: Path) -> None:
    """geoai's `predict_geotiff` with its defaults: tiles of 256 px, 64 shared, spline weights, batches of four."""
    _let_torchvision_in()
    from geoai.inference import predict_geotiff

    network, (mean, std) = _network(model), _constants(model)
    predict_geotiff(
        network,
        str(scene),
        str(mask),
        num_classes=network.config.outputs,
        output_dtype="uint8",
        output_nodata=255,
        preprocess_fn=lambda chip: (chip - mean) / std,
        postprocess_fn=lambda scores: scores.argmax(0)[None],
        verbose=False,
    )


def torchgeo(scene: Path, model: Path, mask: Path) -> None:
    """torchgeo's `GridGeoSampler` and a DataLoader, batches of four, as its tutorials have it."""
    import torch

    _let_torchvision_in()
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    network, places = _network(model), []
    mean, std = map(torch.from_numpy, _constants(model))
    with rasterio.open(scene) as source:
        made, transform = np.full(source.shape, 255, np.uint8), ~source.transform

    class _Scene(RasterDataset):  # type: ignore[misc]
        filename_glob = scene.name

    class _Sampler(GridGeoSampler):  # type: ignore[misc]
        def __iter__(self) -> Any:
            for query in super().__iter__():
                col, row = transform * (query[0].start, query[1].stop)
                places.append((round(row), round(col)))
                yield query

    dataset = _Scene(paths=str(scene.parent))
    loader = DataLoader(dataset, batch_size=4, sampler=_Sampler(dataset, _PATCH, _PATCH), collate_fn=stack_samples)
    done = 0
    for batch in loader:
        labels = network((batch["image"].float() - mean) / std).argmax(1).to(torch.uint8).numpy()
        for patch in labels:
            row, col = places[done]
            done += 1
            here = made[max(row, 0) : row + _PATCH, max(col, 0) : col + _PATCH]
            here[:] = patch[max(-row, 0) :, max(-col, 0) :][: here.shape[0], : here.shape[1]]
    _write(mask, scene, made)


def geodeep(scene: Path, model: Path, mask: Path) -> None:
    """GeoDeep with its defaults: ONNX Runtime, tiles of 512, 5 % overlap; its median and small-region filters included.

    It takes three bands, scaled to [0, 1]: the graph undoes that, and the first band stands in for the fourth.
    """
    import onnx
    import torch
    from geodeep.geodeep import run

    class _Adapted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = _network(model)
            self.mean, self.std = map(torch.from_numpy, _constants(model))

        def forward(self, x: Any) -> Any:
            dn = torch.cat([x, x[:, :1]], 1) * 65535.0
            return self.network((dn - self.mean) / self.std).softmax(1)

    path = model / "geodeep.onnx"
    if not path.exists():
        program = torch.onnx.export(_Adapted().eval(), (torch.zeros(1, 3, _PATCH, _PATCH),), dynamo=True)
        assert program is not None
        program.save(path)
        document = onnx.load(path)
        facts = {"model_type": '"Segmentor"', "resolution": "1", "class_names": '{"0": "a", "1": "b"}'}
        onnx.helper.set_model_props(document, {**facts, "seg_thresh": "0", "tiles_overlap": "5"})
        onnx.save(document, path)
    _write(mask, scene, run(str(scene), str(path)))


def whole(scene: Path, model: Path, mask: Path) -> None:
    """One forward over the scene, mirrored around: what all others are compared with."""
    labels = _network(model)(_scaled(_mirrored(scene), model))[0].argmax(0).numpy().astype(np.uint8)
    _write(mask, scene, labels[_HALO:-_HALO, _HALO:-_HALO])


def whole_ours(scene: Path, model: Path, mask: Path) -> None:
    """The same with our scaling and our engine: sums of another order, which decide otherwise where classes tie."""
    import torch

    import pipeline as sm
    from pipeline.infer import device_thread
    from pipeline.model import labels_of, make_engine

    loaded = sm.load_model(model)
    thread = device_thread(threads=os.cpu_count() or 1)
    spec = sm.plan(scene, loaded, vectors="none", precision="float32").engine.untrimmed
    engine = thread.run(lambda: make_engine(loaded, spec))
    gain, bias = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in loaded.spec.scaling.gain_and_bias())
    x = torch.from_numpy(_mirrored(scene)).float().mul_(gain).add_(bias)[None]
    with torch.inference_mode():
        labels = thread.run(lambda: labels_of(engine, x, loaded.spec))
    _write(mask, scene, labels.numpy()[_HALO:-_HALO, _HALO:-_HALO])


def _mirrored(scene: Path) -> NDArray[Any]:
    """The whole scene `(band, y, x)`, with its mirror image around it as far as the halo."""
    with rasterio.open(scene) as source:
        return np.pad(source.read(), ((0, 0), (_HALO, _HALO), (_HALO, _HALO)), mode="reflect")


PEERS = {
    "ours": Peer(name="scenemask segment, as it is", precision=None),
    "ours32": Peer(name="scenemask segment, float32"),
    "hand": Peer(name="loop by hand, OpenVINO bfloat16", run=hand_written, precision="bfloat16", needs="openvino"),
    "grid": Peer(name="grid-sampler loop, patch 512, no overlap", run=grid_loop),
    "gridx": Peer(name="the same, 96 px thrown away", run=grid_loop_exact),
    "geodeep": Peer(name="GeoDeep (ONNX Runtime)", run=geodeep, needs="geodeep", same_input=False),
    "torchgeo": Peer(name="torchgeo grid sampler", run=torchgeo, needs="torchgeo"),
    "terratorch": Peer(name="terratorch tiled_inference", run=terratorch, needs="terratorch"),
    "geoai": Peer(name="geoai predict_geotiff", run=geoai, needs="geoai"),
    "dask": Peer(name="Dask map_overlap, chunks of 2048, depth 96", run=map_overlap),
    "monai": Peer(name="MONAI sliding window, Gaussian, 50 %", run=monai, needs="monai"),
}


def python_with(module: str) -> str | None:
    """An interpreter that has the module: this one, or that of the peers' own environment."""
    if importlib.util.find_spec(module):
        return sys.executable
    other = OUT / "peers-venv" / "bin" / "python"
    found = other.exists() and list(other.parents[1].glob(f"lib/python*/site-packages/{module}"))
    return str(other) if found else None


def measure(key: str, scene: Path, model: Path, mask: Path) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, peak bytes) of a fresh process."""
    mask.parent.mkdir(parents=True, exist_ok=True)
    command = _command(key, scene, model, mask)
    started = time.perf_counter()
    pid = os.posix_spawn(command[0], command, {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - started
    assert status == 0, f"{key} failed with status {status}"
    if key in PEERS and PEERS[key].run is None:
        (mask.with_suffix("") / "mask.tif").replace(mask)
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def _command(key: str, scene: Path, model: Path, mask: Path) -> list[str]:
    peer = PEERS.get(key)
    if peer is not None and peer.run is None:
        options = ["--vectors", "none", "--overwrite", "--quiet"]
        options += ["--precision", peer.precision] if peer.precision else []
        command = ["-m", "pipeline", "segment", str(scene), "-m", str(model), "-o", str(mask.with_suffix("")), *options]
        return [sys.executable, *command]
    python = python_with(peer.needs if peer else "torch") or sys.executable
    return [python, "-m", "tests.bench.peers", "--child", key, str(scene), str(model), str(mask)]


def far_from_nodata(scene: Path) -> NDArray[np.bool_]:
    """`(y, x)`: True where no nodata is within the halo and a block of the stride."""
    with rasterio.open(scene) as source:
        valid = (source.read() != source.nodata).all(axis=0)
    return np.asarray(ndimage.distance_transform_cdt(valid, metric="chessboard") > _HALO + 16)


def classes_of(key: str, scene: Path, model: Path) -> NDArray[Any]:
    """The mask that one of the ways makes."""
    mask = OUT / "peers" / f"{key}-seams.tif"
    measure(key, scene, model, mask)
    with rasterio.open(mask) as source:
        return np.asarray(source.read(1))


def _ratios(wall_s: float, medians: Mapping[str, tuple[float, ...]]) -> str:
    """How much longer it takes than ours, as it is and in float32."""
    ours = ((name, medians[key][0]) for key, name in (("ours", "as it is"), ("ours32", "float32")) if key in medians)
    return "".join(f"; ours {name} {wall_s / seconds:.2f} × as fast" for name, seconds in ours)


def _bars(wall: Mapping[str, float], seams: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """What the figures are measured against, as rows of the table; those whose parts were measured."""
    default = {key: seconds for key, seconds in wall.items() if key not in {"ours", "ours32", "hand"}}
    exact = [seconds for key, seconds in default.items() if seams.get(key, 1.0) <= _EQUAL_QUALITY]
    fastest, fastest_exact = min(default.values(), default=None), min(exact, default=None)
    ours, ours32, hand = (wall.get(key) for key in ("ours", "ours32", "hand"))
    alike = f"fastest peer with at most {_EQUAL_QUALITY:.0e} of pixels that differ"
    ratios = [
        ("fastest peer at its default ÷ ours as it is", fastest, ours, "≥ 2.5"),
        ("ours as it is ÷ loop by hand", ours, hand, "≤ 1.05"),
        (f"{alike} ÷ ours in float32", fastest_exact, ours32, "≥ 2"),
        ("fastest peer at its default ÷ ours in float32", fastest, ours32, "≥ 1"),
    ]
    return [(what, f"**{one / other:.2f}**", bar) for what, one, other, bar in ratios if one and other]


_EQUAL_QUALITY = 1e-5


def _chosen(run: Path) -> str:
    """What `segment` chose by itself, and why."""
    plan = json.loads((run / "run.json").read_text())["plan"]
    return f"{plan['precision']}: {plan['engine_reason']}"


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--seam-size", type=int, default=2048)
    parser.add_argument("--only", default=",".join(PEERS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--child", nargs=4)
    given = parser.parse_args()
    if given.child:
        key, scene, model, mask = given.child
        runs = {name: peer.run for name, peer in PEERS.items() if peer.run}
        runs |= {"whole": whole, "whole-ours": whole_ours}
        runs[key](Path(scene), Path(model), Path(mask))
        return
    model, scene, small = trained_unet(), scene_of(given.size), scene_of(given.seam_size)
    keys = [key for key in given.only.split(",") if python_with(PEERS[key].needs)]
    far, reference = far_from_nodata(small), classes_of("whole", small, model)
    masks = {key: classes_of(key, small, model) for key in keys if PEERS[key].same_input}
    seams = {key: float((mask != reference)[far].mean()) for key, mask in masks.items()}
    print(json.dumps(seams), flush=True)
    figures: dict[str, list[tuple[float, float, float]]] = {key: [] for key in keys}
    for _ in range(given.repeats):
        for key in keys:
            figures[key].append(measure(key, scene, model, OUT / "peers" / f"{key}.tif"))
            print(f"  {PEERS[key].name}: {figures[key][-1][0]:.1f} s", flush=True)
    medians = {key: tuple(map(statistics.median, zip(*rows, strict=True))) for key, rows in figures.items()}
    rows = [
        (
            PEERS[key].name,
            f"{wall:.1f} s / {cpu:.1f} cpu-s, {peak / 1e9:.2f} GB, "
            + (f"{seams[key]:.2e} of pixels differ" if key in seams else "fed with three bands")
            + ("" if PEERS[key].run is None else _ratios(wall, medians)),
            "",
        )
        for key, (wall, cpu, peak) in medians.items()
    ]
    if "ours32" in masks:
        own = int((masks["ours32"] != classes_of("whole-ours", small, model))[far].sum())
        rows.append(("float32 against one whole forward of the same engine", f"{own} pixels differ", "0"))
    rows += _bars({key: row[0] for key, row in medians.items()}, seams)
    if "ours" in keys:
        rows.append(("what ours chose as it is", _chosen(OUT / "peers" / "ours"), ""))
    title = f"Peers at {given.size}², whole processes; pixels that differ from one whole forward at {given.seam_size}²"
    options = f"--size {given.size} --seam-size {given.seam_size} --repeats {given.repeats} --only {','.join(keys)}"
    facts = {"medians": medians, "seams": seams}
    publish(f"peers-{given.size}", title, f"make bench-peers ({options})", rows, facts, part=cpu())


if __name__ == "__main__":
    main()
