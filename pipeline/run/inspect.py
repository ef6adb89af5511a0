"""What is understood of a scene or a model, as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.location import is_remote
from pipeline.scene import describe_scene, open_scene

if TYPE_CHECKING:
    from pipeline.access import Access
    from pipeline.model import ModelSpec

_MODEL_SUFFIXES = {".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".onnx", ".pt2", ".torchscript"}


def inspect_target(
    target: str | Path,
    *,
    assume_crs: str | None = None,
    nodata: float | None = None,
    trust_model: bool = False,
    write: bool = False,
    access: Access | None = None,
) -> dict[str, Any]:
    """Facts of a scene, or of a model when `target` is a model folder or a network file.

    Args:
        target: Scene or model.
        assume_crs: For a scene without CRS.
        nodata: For a scene that declares none or a wrong one.
        trust_model: Run TorchScript and torch.export files.
        write: Write what was measured into the model's `model.json`.
        access: How servers are reached, for a scene that is not on disk.

    Raises:
        PipelineError: It is neither, or cannot be used.
    """
    if is_remote(target):
        return describe_scene(
            open_scene(target, assume_crs=assume_crs, nodata=nodata, allow_no_crs=assume_crs is None, access=access)
        )
    target = Path(target)
    if _is_model(target):
        return describe_model(target, trust_model=trust_model, write=write)
    scene = open_scene(target, assume_crs=assume_crs, nodata=nodata, allow_no_crs=assume_crs is None)
    facts: dict[str, Any] = describe_scene(scene)
    return facts


def _is_model(target: Path) -> bool:
    """Folders without `model.json` or weights may be scenes."""
    if target.is_dir():
        return any(one.name == "model.json" or one.suffix in _MODEL_SUFFIXES for one in target.iterdir())
    return target.suffix in _MODEL_SUFFIXES or target.name == "model.json"


def describe_model(path: Path, *, trust_model: bool = False, write: bool = False) -> dict[str, Any]:
    """Inputs, outputs and measured traits of a model.

    Raises:
        ModelError: It cannot be used.
    """
    from pipeline.model import load_model, write_traits  # noqa: PLC0415 - torch is not needed to inspect a scene

    model = load_model(path, trust_model=trust_model)
    if write:
        write_traits(model)
    spec, traits = model.spec, model.traits
    rows = zip(spec.bands, spec.scaling.scale, spec.scaling.offset, spec.scaling.mean, spec.scaling.std, strict=True)
    sizes = f"{traits.size_remainder} + " if traits.size_remainder else ""
    return {
        "name": spec.name,
        "digest": model.digest,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "bands": [
            {"band": band, "scale": scale, "offset": offset, "mean": mean, "std": std}
            for band, scale, offset, mean, std in rows
        ],
        "classes": [
            {
                "value": c.value,
                "name": c.name,
                "color": "#{:02x}{:02x}{:02x}".format(*c.color),
                "background": "yes" if c.background else "",
            }
            for c in spec.legend()
        ],
        "activation": spec.activation,
        "decision": _decision(spec),
        "padding": spec.padding,
        "output_stride_px": traits.stride,
        "halo_px": traits.halo_px,
        "patch_sides_px": f"{sizes}multiples of {traits.size_multiple}, at least {traits.size_smallest}",
        "dropped_border_px": traits.margin_px,
        "tiling": traits.tiling,
        "reason": traits.reason,
        "forward_memory_bytes_per_px": round(traits.bytes_per_px),
        "evidence": traits.evidence,
        "warnings": model.warnings,
    }


def _decision(spec: ModelSpec) -> str:
    """What makes classes of probabilities."""
    cuts = ", ".join(f"{value:g}" for value in spec.thresholds)
    if spec.multilabel:
        return f"classes overlap: each where its probability is at least {cuts}; the mask has a band per class"
    return f"the second class where its probability is at least {cuts}" if spec.binary else "the largest output"
