"""Which library, precision and patch a run uses: measured where it pays, decided once by the client."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.errors import ModelError, UsageError
from pipeline.infer import Calibration, Scaler, calibrate, device_thread
from pipeline.model import EngineSpec, has_fast_bfloat16, labels_of, make_engine, num_left_out, openvino
from pipeline.model.foreign import OnnxNetwork
from pipeline.run.compare import differs
from pipeline.run.scene_samples import sample_blocks
from pipeline.run.workers import cores_per_worker
from pipeline.store.ahead import in_order

if TYPE_CHECKING:
    from pipeline.infer import DeviceThread
    from pipeline.model import Backend, Model, Precision
    from pipeline.run.settings import SegmentSettings
    from pipeline.scene import Scene

WORTH_MEASURING_PX = 3_000_000
"""Scenes below this are done before a measurement would have paid: PyTorch, float32, no calibration."""
_SAMPLE_PX = 256
"""Side of the windows that precisions are compared on. With 192, 256, 384 and 1024 px shares of 0.0070, 0.0073, 0.0072
and 0.0072 were found for one network, 1.36e-4, 1.37e-4, 1.42e-4 and 1.43e-4 for another, on a scene of 8192 px."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """What runs the network, and why."""

    spec: EngineSpec
    reason: str
    """One sentence: why this library and this precision."""
    flips_frac: float | None
    """Share of sampled pixels whose class differs from float32; None when float32 was taken without a comparison."""
    worth_measuring: bool
    """Whether the scene is so large that a measured patch pays."""


def choose_engine(
    scene: Scene, model: Model, settings: SegmentSettings, *, device: str, one_size: bool, num_pixels: int
) -> EngineChoice:
    """Resolve `backend` and `precision`.

    Args:
        scene: Where windows are sampled.
        model: The model.
        settings: What was asked for.
        device: `cpu` or `cuda`.
        one_size: Whether all patches will have one size.
        num_pixels: Of all that is to be computed.

    Raises:
        ModelError: MD-012 when the backend that was asked for cannot run the network here.
        UsageError: CF-006 when the precision that was asked for is not to be had.
    """
    threads = cores_per_worker(settings)
    thread = device_thread(threads=threads)
    small = num_pixels < WORTH_MEASURING_PX
    backend, why = _backend(model, settings.backend, device=device, small=small)
    spec = EngineSpec(
        backend=backend,
        device=device,
        precision="float32",
        threads=threads,
        one_size=one_size,
        deterministic=settings.deterministic,
    )
    precision, flips, because = _precision(scene, model, settings, spec, thread, small=small)
    spec = spec.model_copy(update={"precision": precision})
    return EngineChoice(
        spec=spec,
        reason=f"{why}; {because}",
        flips_frac=flips,
        worth_measuring=not (small and backend == "torch"),
    )


def trim_to_halo(choice: EngineChoice, model: Model, halo_px: int, *, budget_bytes: int) -> EngineChoice:
    """The engine without work for outputs that lie in every patch's halo, where it can leave them out.

    Args:
        choice: The engine.
        model: The model.
        halo_px: Outputs on each side that are thrown away.
        budget_bytes: What finding out may take.
    """
    if not choice.spec.one_size:
        return choice
    spec = choice.spec.model_copy(update={"trim_px": halo_px})
    thread = device_thread(threads=spec.threads)
    left_out = thread.run(lambda: num_left_out(model, spec, budget_bytes=budget_bytes))
    if not left_out:
        return choice
    return dataclasses.replace(choice, spec=spec.model_copy(update={"left_out_px": left_out}))


def measured_cost(choice: EngineChoice, model: Model, *, budget_bytes: int, most_bytes: int) -> Calibration | None:
    """Time and memory of a forward; None where they are not worth measuring.

    Args:
        choice: The engine.
        model: The model.
        budget_bytes: What a forward may take.
        most_bytes: What it may take where less tells too little.
    """
    if not choice.worth_measuring:
        return None
    thread = device_thread(threads=choice.spec.threads)
    return calibrate(model, choice.spec, thread, budget_bytes=budget_bytes, most_bytes=most_bytes)


def _backend(model: Model, wanted: str, *, device: str, small: bool) -> tuple[Backend, str]:
    """(backend, why)."""
    own: Backend = "onnxruntime" if isinstance(model.network, OnnxNetwork) else "torch"
    name = {"onnxruntime": "ONNX Runtime", "torch": "PyTorch"}[own]
    if wanted == own:
        return own, f"{name} was asked for"
    if wanted not in {"auto", "openvino"}:
        raise _cannot_run(wanted, f"this network runs on {name}, or on OpenVINO")
    if device != "cpu":
        why_not: str | None = f"OpenVINO does not run on {device}"
    elif small and wanted == "auto":
        why_not = "the scene is too small for OpenVINO to pay"
    else:
        why_not = openvino.why_not(model)
    if why_not is None:
        return "openvino", "OpenVINO was asked for" if wanted != "auto" else f"OpenVINO, checked against {name}"
    if wanted != "auto":
        raise _cannot_run(wanted, why_not)
    return own, f"{name}: {why_not}"


def _cannot_run(backend: str, why: str) -> ModelError:
    return ModelError(
        f"--backend {backend} was asked for: {why}",
        code="MD-012",
        title="Backend cannot run the network",
        fix="use --backend auto, or install the extra that brings it: scenemask[openvino], scenemask[onnx]",
    )


def _precision(
    scene: Scene, model: Model, settings: SegmentSettings, spec: EngineSpec, thread: DeviceThread, *, small: bool
) -> tuple[Precision, float | None, str]:
    """(precision, measured share of flipped classes, why)."""
    wanted = settings.precision
    if wanted != "auto":
        _refuse_precision(wanted, spec)
        flips = None if wanted == "float32" else measure_flips(scene, model, spec, wanted, thread)
        return wanted, flips, f"{wanted} was asked for"
    why_exact = (
        "as the file is" if spec.backend == "onnxruntime"
        else f"this {spec.device} has no fast bfloat16" if not has_fast_bfloat16(spec.device)
        else "the scene is small" if small
        else None
    )  # fmt: skip
    flips = measure_flips(scene, model, spec, "bfloat16", thread) if why_exact is None else None
    if flips is None:
        return "float32", None, f"float32: {why_exact or 'no valid pixel was found to compare bfloat16 on'}"
    share = f"bfloat16 changes the class of {flips:.3%} of sampled pixels"
    if flips <= settings.max_flip:
        return "bfloat16", flips, f"{share}, at most {settings.max_flip:.2%} are allowed"
    return "float32", flips, f"float32: {share}, more than {settings.max_flip:.2%}"


def _refuse_precision(wanted: Precision, spec: EngineSpec) -> None:
    slow = wanted == "float16" and spec.device == "cpu"
    if slow or (wanted != "float32" and spec.backend == "onnxruntime"):
        why = (
            "on a CPU, where bfloat16 is faster and more exact" if slow else "with ONNX Runtime, which keeps the file's"
        )
        raise UsageError(
            f"--precision {wanted} {why}",
            code="CF-006",
            title="Options do not fit the network",
            fix="use --precision auto or float32, or bfloat16 with --backend openvino or torch",
        )


def measure_flips(
    scene: Scene, model: Model, spec: EngineSpec, precision: Precision, thread: DeviceThread
) -> float | None:
    """Share of valid pixels, in a few windows spread over the scene, whose class differs from float32.

    Returns:
        0 to 1, or None when no valid pixel was found.
    """
    sizes = model.traits.sizes
    side = sizes.at_most(min(*scene.geobox.shape, sizes.at_least(_SAMPLE_PX)))
    if side is None:
        return None
    scaler = Scaler(model.spec.scaling)
    margin = model.traits.margin_px

    def classes() -> tuple[int, int]:
        exact, fast = (make_engine(model, spec.model_copy(update={"precision": p})) for p in ("float32", precision))
        if spec.device == "cpu":  # both at a time: compiling takes longer than computing the windows
            shape = 1, len(model.spec.bands), side, side
            list(in_order(lambda engine: engine.prepare(shape, labels=True), (exact, fast)))
        differing = total = 0
        for data, valid in reading.result():
            inner = valid[margin : side - margin, margin : side - margin]
            with torch.inference_mode():
                x = scaler(torch.from_numpy(data).to(spec.device), torch.from_numpy(~valid).to(spec.device))
                one, other = (labels_of(engine, x, model.spec).cpu().numpy().copy() for engine in (exact, fast))
            differing += int((differs(one, other) & inner).sum())
            total += int(inner.sum())
        return differing, total

    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(list, sample_blocks(scene, side))  # while graphs are compiled
        differing, total = thread.run(classes)
    return differing / total if total else None
