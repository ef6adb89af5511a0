"""What is understood of a scene or a model, as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.location import is_remote
from pipeline.run.settings import make_settings
from pipeline.scene import describe_scene

if TYPE_CHECKING:
    from torch import nn

    from pipeline.model import ForeignNetwork, ModelSpec, Traits
    from pipeline.run.settings import SegmentSettings

SCENE_SETTINGS = (
    "bands", "aoi", "mask_layer", "mask_values", "nodata", "assume_crs", "resampling", "resolution", "force_resolution",
    "crs", "align", "warp_gcps", "rpc_height", "rpc_dem", "values", "trust_model",
    "endpoint", "allow_loopback", "retries", "connect_timeout", "read_timeout",
)  # fmt: skip
"""Settings of `segment` that say what is read of a scene, and how."""
_MODEL_SUFFIXES = {".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".onnx", ".pt2", ".torchscript"}


def inspect_target(
    target: Any, *, model: str | Path | None = None, write: bool = False, **options: Any
) -> dict[str, Any]:
    """Facts of a scene as `segment` would read it; or of a model when `target` is a model folder or a network file.

    Args:
        target: Path, address, several of them side by side, or a model.
        model: Whose bands, pixels and values are wanted of the scene; all that is in it, as it is, if not given.
        write: Write what was measured into the model's `model.json`.
        **options: Fields of `SegmentSettings` among `SCENE_SETTINGS`. A scene without CRS is taken.

    Raises:
        PipelineError: It is neither, or cannot be used.
    """
    settings = make_settings(options | ({} if options.get("assume_crs") else {"allow_no_crs": True}))
    if isinstance(target, str | Path) and not is_remote(target) and _is_model(Path(target)):
        given = [name for name in options if name != "trust_model"]
        if given or model is not None:
            raise UsageError(
                f"{', '.join(given) or 'model'} given for {Path(target).name}, which is a model; expected a scene",
                code="CF-005",
                title="Setting is wrong",
                fix="leave them out, or name the scene first and the model with -m",
            )
        return describe_model(Path(target), trust_model=settings.trust_model, write=write)
    return _describe(target, model, settings)


def _describe(target: Any, path: str | Path | None, settings: SegmentSettings) -> dict[str, Any]:
    from pipeline.run.resolve import bare_options, resolve_limits, resolve_scene  # noqa: PLC0415 - not for a model
    from pipeline.run.values import range_warning, say_values  # noqa: PLC0415

    if settings.resolution == "model" and path is None:
        raise UsageError(
            "--resolution model was given, and no model",
            code="CF-090",
            title="Model has no resolution",
            where="--resolution",
            fix="add -m MODEL, or give metres",
        )
    model = None
    if path is not None:
        from pipeline.model import load_model  # noqa: PLC0415 - torch is not needed for a scene alone

        model = load_model(Path(path), bare=bare_options(settings), trust_model=settings.trust_model)
    scene = resolve_scene(target, model, settings)
    limits = resolve_limits(scene, settings)
    facts: dict[str, Any] = describe_scene(scene, limits)
    facts["warnings"] += limits.warnings
    if model is not None:
        facts["values"] = say_values(scene, model)
        facts["warnings"] += filter(None, [range_warning(scene, model)])
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
    from pipeline.model import ForeignNetwork, load_model, write_traits  # noqa: PLC0415 - no torch for a scene

    model = load_model(path, trust_model=trust_model)
    if write:
        write_traits(model)
    spec, traits = model.spec, model.traits
    rows = zip(spec.bands, spec.scaling.scale, spec.scaling.offset, spec.scaling.mean, spec.scaling.std, strict=True)
    file = _network_file(model.network, traits, len(spec.bands)) if isinstance(model.network, ForeignNetwork) else {}
    return {
        "name": spec.name,
        "digest": model.digest,
        "parameters": _num_weights(model.network),
        **file,
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
        "patch_sides_px": _sides(traits),
        "dropped_border_px": traits.margin_px,
        "same_wherever_it_lies": "yes" if traits.equivariant else "no",
        "same_each_time": "yes" if traits.deterministic else "no",
        "tiling": traits.tiling,
        "reason": traits.reason,
        "forward_memory_bytes_per_px": round(traits.bytes_per_px),
        "evidence": traits.evidence,
        "warnings": model.warnings,
    }


def _num_weights(network: nn.Module) -> int | None:
    """Numbers that were learned; None where the file cannot be asked."""
    from pipeline.model.foreign import OnnxNetwork  # noqa: PLC0415 - no torch for a scene

    return network.num_weights if isinstance(network, OnnxNetwork) else sum(p.numel() for p in network.parameters())


def _network_file(network: ForeignNetwork, traits: Traits, bands: int) -> dict[str, Any]:
    """What kind of file it is, and which of its outputs counts."""
    import torch  # noqa: PLC0415 - not needed to inspect a scene

    side = traits.sizes.at_least(2 * traits.margin_px + 1)
    with torch.inference_mode():
        outputs = network.outputs(torch.zeros(1, bands, side, side))
    counts = "the first with four axes" if network.io.output is None else repr(network.io.output)
    return {
        "format": network.io.format,
        "layout": network.io.layout,
        "outputs": [{"output": name, "sizes": " x ".join(map(str, sizes))} for name, sizes in outputs.items()],
        "output_that_counts": counts,
    }


def _sides(traits: Traits) -> str:
    """Sides of patches that the network takes."""
    if traits.size_largest == traits.size_smallest:
        return f"{traits.size_smallest} only"
    more = f"{traits.size_remainder} + " if traits.size_remainder else ""
    return f"{more}multiples of {traits.size_multiple}, at least {traits.size_smallest}"


def _decision(spec: ModelSpec) -> str:
    """What makes classes of probabilities."""
    cuts = ", ".join(f"{value:g}" for value in spec.thresholds)
    if spec.multilabel:
        return f"classes overlap: each where its probability is at least {cuts}; the mask has a band per class"
    return f"the second class where its probability is at least {cuts}" if spec.binary else "the largest output"
