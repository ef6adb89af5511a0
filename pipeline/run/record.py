"""`run.json`: settings as resolved, versions, hashes, plan, timings, what was found. Written last, as the commit."""

from __future__ import annotations

import resource
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from pipeline.run.doctor import versions
from pipeline.run.values import say_values
from pipeline.scene.rescale import RescaledScene
from pipeline.scene.sources import SourcesScene
from pipeline.store import block_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.model import Model
    from pipeline.run.finish import Finished
    from pipeline.run.plan import Plan
    from pipeline.run.settings import SegmentSettings
    from pipeline.run.verify import Verification
    from pipeline.scene import Scene
    from pipeline.store import TileRecord


def run_record(
    *,
    identity: Mapping[str, Any],
    settings: SegmentSettings,
    plan: Plan,
    model: Model,
    scene: Scene,
    warnings: Sequence[str],
    records: list[TileRecord],
    finished: Finished,
    verified: Verification | None,
    timings: Mapping[str, float],
    started: float,
) -> dict[str, Any]:
    """Content of run.json as plain values."""
    return {
        "scenemask": versions()["scenemask"],
        "status": "empty" if not any(record.valid_px for record in records) else "ok",
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "finished": datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds"),
        "scene": scene.name,
        "source": _source(scene),
        "values": say_values(scene, model),
        "model": model.spec.name,
        "classes": class_rows(model, finished),
        "polygons": finished.num_polygons,
        "regularized": None if finished.regularized is None else finished.regularized._asdict(),
        "plan": plan.summary(),
        "timings_s": dict(timings),
        "peak_memory_bytes": peak_memory_bytes(),
        "device_peak_memory_bytes": device_peak_bytes(plan.engine.device),
        "tiles": {
            "total": len(records),
            "empty": sum(record.kind == "empty" for record in records),
            "split_for_memory": sum(record.splits > 0 for record in records),
            "split": [record.tile for record in records if record.splits],
            "worker_seconds": round(sum(record.seconds for record in records), 3),
        },
        "verify": None if verified is None else verified.to_json(),
        "valid_px": sum(record.valid_px for record in finished.records),
        "warnings": list(warnings),
        "deterministic": not any(record.splits for record in records),
        "settings": settings.model_dump(mode="json"),
        "blocks": _blocks(plan, finished),
        "identity": dict(identity),
        "frozen_plan": plan.to_json(),
        "versions": versions(),
        "files": finished.files,
    }


def _source(scene: Scene) -> Any:
    """What is read from where, of a scene that is more than one file as it is."""
    scaled = scene if isinstance(scene, RescaledScene) else None
    inner = scene if scaled is None else scaled.scene
    found = dict(inner.describe()) if isinstance(inner, SourcesScene) else {}
    return (found | ({} if scaled is None else {"values": scaled.describe()})) or None


def _blocks(plan: Plan, finished: Finished) -> dict[str, Any]:
    """Hashes of the rasters' blocks, which are the tiles: `scenemask verify` compares them."""
    hashes = {"mask.tif": {record.tile: record.mask_sha256 for record in finished.records}}
    if plan.probabilities:
        hashes["probabilities.tif"] = {record.tile: record.prob_sha256 for record in finished.records}
    rows = {name: block_rows(digests, columns=finished.columns) for name, digests in hashes.items()}
    return {"tile_hw": list(finished.tile_hw), "rows": rows}


def class_rows(model: Model, finished: Finished) -> list[dict[str, Any]]:
    """Pixels and area per class, from the tiles' own counts."""
    rows = []
    for info in model.spec.legend():
        pixels = sum(record.class_px[info.value] for record in finished.records if record.class_px is not None)
        area = None if finished.area_m2 is None else round(finished.area_m2[info.value], 3)
        rows.append({"value": info.value, "name": info.name, "pixels": pixels, "area_m2": area})
    return rows


def peak_memory_bytes() -> int:
    """Peak resident memory of this process and of its finished children, the larger."""
    kib = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return int(kib) * 1024


def device_peak_bytes(device: str) -> int | None:
    """Peak of what PyTorch had of a GPU in this process; None on a CPU, or where other processes had it."""
    used = device == "cuda" and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.max_memory_allocated() if used else None
