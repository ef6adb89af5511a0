"""Every engine gives what the network gives, and the laws hold on each."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from pipeline.grid import Window, exact_tiling
from pipeline.infer import calibrate, calibration, device_thread
from pipeline.infer import predictor as predictor_module
from pipeline.model import (
    EngineSpec,
    Model,
    ModelSpec,
    UNet,
    UNetConfig,
    can_trim,
    left_out_px,
    make_engine,
    model_from_module,
    num_left_out,
    openvino,
)
from pipeline.model.decision import NOT_FINITE
from tests.networks import predict_by_tiles, predictor, random_scene, reader, unet_model, whole_forward

if TYPE_CHECKING:
    from pipeline.model import Backend

needs_openvino = pytest.mark.skipif(not openvino.available(), reason="OpenVINO is not installed")
BACKENDS = ["torch", pytest.param("openvino", marks=needs_openvino)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def _spec(backend: Backend, **changes: object) -> EngineSpec:
    given = {"backend": backend, "device": "cpu", "precision": "float32", "threads": 2, "one_size": True}
    return EngineSpec.model_validate({**given, **changes})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("upsampling", ["transposed", "bilinear", "nearest"])
def test_an_engine_gives_what_the_network_gives(backend: Backend, upsampling: str) -> None:
    model = unet_model(depth=3, width=8, upsampling=upsampling)
    x = torch.randn(1, 2, 64, 96)
    engine = make_engine(model, _spec(backend))
    for _ in range(2):  # the second call reuses what the first one made
        with torch.inference_mode():
            reference = model.network(x)
            assert torch.allclose(engine.run(x), reference, atol=1e-5 * float(reference.abs().max()))
    labels = engine.label(x)
    close = (reference.topk(2, dim=1).values.diff(dim=1).abs() < 1e-4)[0, 0]
    assert ((labels == reference[0].argmax(0)) | close).all()


@needs_openvino
@pytest.mark.parametrize("one_size", [True, False])
def test_other_sizes_are_taken_too(*, one_size: bool) -> None:
    model = unet_model(depth=2)
    engine = make_engine(model, _spec("openvino", one_size=one_size))
    for side in (32, 64, 48):
        x = torch.randn(1, 2, side, 2 * side)
        with torch.inference_mode():
            assert torch.allclose(engine.run(x), model.network(x), atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_tell_where_the_output_is_no_number(backend: Backend) -> None:
    model = unet_model(depth=2)
    network = torch.nn.Conv2d(2, 3, 1)
    other = Model(spec=model.spec, network=network.eval(), digest="one by one")
    x = torch.randn(1, 2, 64, 96)
    x[0, 0, 3, 5], x[0, 1, 60, 90] = torch.nan, torch.inf
    labels = make_engine(other, _spec(backend)).label(x)
    assert labels[3, 5] == labels[60, 90] == NOT_FINITE
    assert int((labels == NOT_FINITE).sum()) == 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("padding", "trim"), [("reflect", False), ("reflect", True), ("network", False)])
@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
def test_exact_law(backend: Backend, padding: str, upsampling: str, *, trim: bool) -> None:
    model = unet_model(depth=3, width=8, upsampling=upsampling)
    traits, shape = model.traits, (203, 170)
    trim_px = (traits.halo_px or 0) if trim else 0
    data = random_scene(2, shape)
    tiling = exact_tiling(
        shape,
        core_hw=(64, 48),
        halo_px=traits.halo_px or 0,
        stride=traits.stride,
        margin_px=left_out_px(model.network, trim_px),
        sizes=traits.sizes,
        tile_px=64,
        network_padding=padding == "network",
    )
    assert (tiling.rows.margin > 0) == trim
    result = predict_by_tiles(model, tiling, reader(data), backend=backend, padding=padding, trim_px=trim_px)
    before = 0 if padding == "network" else 64
    sides = [-(-(n + before) // 8) * 8 - n for n in shape]
    after = sides if padding == "network" else [64 + (-(n + 128)) % 8 for n in shape]
    reference = whole_forward(model, data, before=before, after_hw=(after[0], after[1]))
    assert result.probabilities is not None
    assert np.abs(result.probabilities - reference).max() <= 1e-5
    top = np.sort(reference, axis=0)
    assert ((result.mask == reference.argmax(0)) | (top[-1] - top[-2] < 2e-5)).all()


@needs_openvino
def test_exact_law_of_others_networks_that_leave_out_what_nobody_needs() -> None:
    """Strides, skips and all: tiles equal one whole forward of the network as it is."""
    torch.manual_seed(0)
    down = torch.nn.Sequential(
        torch.nn.Conv2d(2, 8, 7, 2, 3), torch.nn.ReLU(), *(torch.nn.Conv2d(8, 8, 3, 1, 1) for _ in range(6))
    )
    up = [torch.nn.ConvTranspose2d(8, 8, 4, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 5, 1, 2)]
    model = model_from_module(torch.nn.Sequential(down, *up), unet_model().spec)
    traits, shape = model.traits, (203, 170)
    halo = traits.halo_px or 0
    left_out = num_left_out(model, _spec("openvino", trim_px=halo), budget_bytes=10**9)
    assert halo - 8 <= left_out <= halo
    data = random_scene(2, shape)
    tiling = exact_tiling(
        shape,
        core_hw=(64, 48),
        halo_px=halo,
        stride=traits.stride,
        margin_px=left_out,
        sizes=traits.sizes,
        tile_px=64,
    )
    result = predict_by_tiles(model, tiling, reader(data), backend="openvino", trim_px=halo)
    reference = whole_forward(model, data, before=64, after_hw=(64 + shape[0] % 2, 64 + shape[1] % 2))
    assert result.probabilities is not None
    assert np.abs(result.probabilities - reference).max() <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_classes_do_not_depend_on_tiles_or_on_probabilities(backend: Backend, precision: str) -> None:
    """Also in low precision, and whether the arg-max runs inside the graph or after it."""
    model = unet_model(depth=2, width=8)
    shape = (150, 130)
    data = random_scene(2, shape)
    masks = []
    for tile in (32, 64, 200):
        tiling = exact_tiling(
            shape,
            core_hw=(32, 32),
            halo_px=model.traits.halo_px or 0,
            stride=model.traits.stride,
            margin_px=0,
            sizes=model.traits.sizes,
            tile_px=tile,
        )
        masks.append(predict_by_tiles(model, tiling, reader(data), backend=backend, precision=precision).mask)
        engine = predictor(model, tiling, backend=backend, precision=precision)
        whole = Window.from_bounds(0, 0, *shape)
        masks.append(engine.predict(reader(data), whole).mask)
    assert all(np.array_equal(masks[0], mask) for mask in masks[1:])


@needs_openvino
def test_a_converted_graph_is_kept_and_a_damaged_one_made_again(tmp_path: object) -> None:
    from pathlib import Path

    model = unet_model(depth=2)
    x = torch.randn(1, 2, 64, 96)
    first = make_engine(model, _spec("openvino")).run(x).clone()
    kept = sorted(Path(str(tmp_path)).rglob("*.xml"))
    assert len(kept) == 1
    again = make_engine(model, _spec("openvino")).run(x).clone()
    kept[0].write_text("<net")
    assert torch.equal(first, again)
    assert torch.equal(first, make_engine(model, _spec("openvino")).run(x))


@needs_openvino
def test_a_network_that_openvino_gets_wrong_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = unet_model(depth=2)
    assert openvino.why_not(model) is None
    monkeypatch.setattr(openvino, "_PARITY", 0.0)
    other = unet_model(depth=2, seed=3)
    assert "differs from the network by" in (openvino.why_not(other) or "")


@pytest.mark.parametrize("backend", BACKENDS)
def test_calibration_is_plausible_and_recalled(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    model = unet_model(depth=2, width=8)
    spec, thread = _spec(backend), device_thread(threads=2)
    monkeypatch.setattr(calibration, "_MOST_WAITING", 1e9)  # other tests run beside this one
    made = calibrate(model, spec, thread, budget_bytes=10**9)
    assert made.seconds(1024 * 1024) > made.seconds(256 * 256) > 0
    assert 20 < made.bytes_per_px < 4000
    monkeypatch.setattr("pipeline.infer.calibration._measure", lambda *_: pytest.fail("measured again"))
    assert calibrate(model, spec, thread, budget_bytes=10**9) == made


def test_a_calibration_beside_other_work_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([(0.0, 0.0), (2.0, 0.3), (2.0, 0.3), (4.0, 0.31)])
    tried: list[int] = []

    def measure(_: Model, __: EngineSpec, side: int) -> calibration._Point:
        tried.append(side)
        return calibration._Point(side * side, 1e-6 * side * side, 1000.0 * side * side, first_s=0.1)

    monkeypatch.setattr(calibration, "_try", measure)
    monkeypatch.setattr(calibration, "_scheduled", lambda: next(counts))
    model, thread = unet_model(depth=2, width=8), device_thread(threads=2)
    for _ in range(3):
        calibrate(model, _spec("torch"), thread, budget_bytes=10**10)
    assert len(tried) == 4  # disturbed, then quiet, then recalled


def test_waiting_for_cores_is_counted() -> None:
    """Two busy processes on one core wait for about as long as they run."""
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("this kernel does not count it")
    core = {min(os.sched_getaffinity(0))}
    code = f"import os, time; os.sched_setaffinity(0, {core})\nwhile time.process_time() < 2: pass"
    everything = os.sched_getaffinity(0)
    with subprocess.Popen([sys.executable, "-c", code]) as other:
        time.sleep(0.2)
        os.sched_setaffinity(0, core)
        try:
            before, end = calibration._scheduled(), time.process_time() + 0.3
            while time.process_time() < end:
                pass
            after = calibration._scheduled()
        finally:
            os.sched_setaffinity(0, everything)
            other.kill()
    assert calibration._was_disturbed(before, after)
    assert not calibration._was_disturbed(before, before)


def test_a_calibration_keeps_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second patch tried is as large as the first one says it may be."""
    tried: list[int] = []

    def measure(model: Model, spec: EngineSpec, side: int) -> calibration._Point:
        tried.append(side)
        return calibration._Point(side * side, 1e-6 * side * side, 1000.0 * side * side, first_s=0.1)

    monkeypatch.setattr(calibration, "_try", measure)
    model, thread = unet_model(depth=2, width=8), device_thread(threads=2)
    for number, budget in enumerate((10**10, 1000 * 700**2, 1000 * 100**2)):
        calibrate(model, _spec("torch", threads=number + 1), thread, budget_bytes=budget)
    assert tried == [384, 1024, 384, 700, 384]
    del tried[:]
    calibrate(model, _spec("torch", trim_px=24, left_out_px=22), thread, budget_bytes=10**10)
    assert tried == [384, 1024, 1024]
    del tried[:]  # beyond a far halo there must be something left
    calibrate(model, _spec("torch", trim_px=544, left_out_px=542), thread, budget_bytes=10**10)
    assert tried == [384, 1472, 1472]


def test_what_a_far_halo_saves_is_measured_with_more_memory_or_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch within the budget would show nothing of it, and cores of next to nothing would look as good as any."""
    tried: list[int] = []

    def measure(model: Model, spec: EngineSpec, side: int) -> calibration._Point:
        tried.append(side)
        kept = (side - 2 * spec.left_out_px) ** 2
        return calibration._Point(side * side, 1e-6 * side**2 + 2e-6 * kept, 1000.0 * side**2, first_s=0.1)

    monkeypatch.setattr(calibration, "_try", measure)
    monkeypatch.setattr(calibration, "_was_disturbed", lambda *_: False)
    model, thread = unet_model(depth=2, width=8), device_thread(threads=2)
    spec, budget = _spec("torch", trim_px=544, left_out_px=542), 1000 * 1000**2
    poor = calibrate(model, spec, thread, budget_bytes=budget)
    assert poor.saved_s_per_px == 0
    assert tried == [384, 1000]
    made = calibrate(model, spec, thread, budget_bytes=budget, most_bytes=10**10)  # the poor figures were not kept
    assert made.saved_s_per_px > 1e-6
    assert tried[2:] == [384, 1472, 1472]
    assert calibrate(model, spec, thread, budget_bytes=budget) == made  # these were


def test_a_calibration_tells_what_leaving_outputs_out_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(model: Model, spec: EngineSpec, side: int) -> calibration._Point:
        kept = (side - 2 * spec.left_out_px) ** 2
        nbytes = 100.0 * side**2 + 200.0 * kept
        return calibration._Point(side * side, 0.1 + 1e-6 * side**2 + 2e-6 * kept, nbytes, first_s=0.1)

    monkeypatch.setattr(calibration, "_try", measure)
    model, thread = unet_model(depth=2, width=8), device_thread(threads=2)
    made = calibrate(model, _spec("torch", trim_px=24, left_out_px=22), thread, budget_bytes=10**10)
    assert made.saved_s_per_px == pytest.approx(2e-6)
    assert made.saved_bytes_per_px == pytest.approx(200.0)
    assert made.seconds(10**6, left_out=10**5) == pytest.approx(0.1 + 3.0 - 0.2)


def test_a_calibration_tells_what_size_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pixel beyond what caches hold costs twice as much, and one that is written to for the first time more yet."""
    tried: list[int] = []

    def measure(_: Model, __: EngineSpec, side: int) -> calibration._Point:
        tried.append(side)
        pixels = side * side
        seconds = each * pixels + slower * max(pixels - 1024**2, 0)
        return calibration._Point(pixels, seconds, 100.0 * pixels, first_s=0.3 + 5e-8 * pixels)

    monkeypatch.setattr(calibration, "_try", measure)
    monkeypatch.setattr(calibration, "_was_disturbed", lambda *_: False)
    model, thread, each, slower = unet_model(depth=2, width=8), device_thread(threads=2), 1e-8, 1e-8
    made = calibrate(model, _spec("torch"), thread, budget_bytes=10**10)
    assert calibrate(model, _spec("torch"), thread, budget_bytes=10**10) == made  # recalled
    assert tried == [384, 1024, 2048]
    assert made.first_s_per_px == pytest.approx(5e-8)
    assert made.seconds(2**20) == pytest.approx(1e-8 * 2**20)
    assert made.seconds(2**22) == pytest.approx(1e-8 * 2**22 + 1e-8 * 3 * 2**20)
    np.testing.assert_allclose(made.seconds(np.array([2**20, 2**22])), [made.seconds(2**20), made.seconds(2**22)])
    for number, (each, slower, sides) in enumerate(((1e-8, 1e-6, [2048]), (3e-7, 1e-6, [1536]), (1e-6, 1e-6, []))):
        del tried[:]
        slow = calibrate(model, _spec("torch", threads=3 + number), thread, budget_bytes=10**10)
        assert tried == [384, 1024, *sides]  # no forward takes more than a second
        assert not sides or slow.large_s_per_px == pytest.approx(each + slower)


class _WithPrior(UNet):
    """Does more than its parent: what is taken apart in that must not be in this."""

    def forward(self, x: torch.Tensor, trim_px: int = 0) -> torch.Tensor:
        del trim_px
        return super().forward(x) + torch.tensor([0.0, 50.0, 0.0])[:, None, None]


def test_a_subclass_of_the_unet_keeps_its_own_forward() -> None:
    spec = unet_model(depth=2).spec
    network = _WithPrior(UNetConfig(bands=2, outputs=3, depth=2, width=4)).eval()
    assert not can_trim(network)
    assert left_out_px(network, 24) == 0
    model = Model(spec=spec, network=network, digest="with prior", cacheable=False)
    labels = make_engine(model, _spec("torch")).label(torch.randn(1, 2, 64, 64))
    assert labels is not None
    assert (labels == 1).all()


@pytest.mark.parametrize(("classes", "has_labels"), [(255, True), (256, False)])
def test_labels_are_for_networks_that_have_a_byte_per_class(classes: int, *, has_labels: bool) -> None:
    model = unet_model(depth=2, classes=classes)
    x = torch.randn(1, 2, 64, 64)
    engine = make_engine(model, _spec("torch"))
    assert (engine.label(x) is not None) == has_labels
    assert engine.run(x).shape[1] == classes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("multilabel", [False, True])
def test_labels_by_thresholds_are_those_of_the_probabilities(backend: Backend, *, multilabel: bool) -> None:
    made = unet_model(depth=2, classes=3 if multilabel else 1)
    cuts = (0.2, 0.5, 0.9) if multilabel else (0.3,)
    changes = {"classes": ("a", "b", "c")} if multilabel else {"classes": ("no", "yes"), "outputs": 1}
    spec = ModelSpec.model_validate(
        {
            **made.spec.model_dump(),
            **changes,
            "activation": "sigmoid",
            "multilabel": multilabel,
            "threshold": cuts if multilabel else cuts[0],
        }
    )
    torch.manual_seed(0)
    network = torch.nn.Conv2d(2, len(cuts), 1).eval()  # OpenVINO's ReLU makes zero of a NaN
    model = Model(spec=spec, network=network, digest=f"thresholds {multilabel}")
    x = 5 * torch.randn(1, 2, 200, 64)
    x[0, 0, 3, 5] = torch.nan
    engine = make_engine(model, _spec(backend))
    labels = engine.label(x)
    assert labels is not None
    labels = labels.clone()
    p = torch.sigmoid(engine.run(x)[0])
    if not multilabel:
        labels = labels[None]
    finite = torch.isfinite(p.sum(dim=0))
    assert not finite.all()
    assert (labels[:, ~finite] == NOT_FINITE).all()
    for label, probability, cut in zip(labels, p, cuts, strict=True):
        sure = finite & ((probability - cut).abs() > 1e-5)
        assert (label[sure] == (probability >= cut)[sure]).all()
        assert 0 < float(label[finite].float().mean()) < 1


def test_a_calibration_without_a_budget_or_anything_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_try", lambda _m, _s, side: calibration._Point(side * side, 1.0, 100.0, 0.0))
    model, thread = unet_model(depth=2, width=8), device_thread(threads=2)
    assert calibrate(model, _spec("torch"), thread, budget_bytes=-5).s_per_px > 0
    assert calibrate(model, _spec("torch", trim_px=2, left_out_px=0), thread, budget_bytes=10**9).saved_s_per_px == 0


def test_labels_of_a_gpu_are_waited_for_by_the_tile_and_not_by_the_device_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, shape = unet_model(depth=2), (200, 150)
    data = random_scene(2, shape)
    tiling = exact_tiling(
        shape, core_hw=(64, 64), halo_px=24, stride=4, margin_px=0, sizes=model.traits.sizes, tile_px=200
    )
    waited: list[str] = []

    def to_host(labels: torch.Tensor) -> object:
        copy = labels.clone()
        waiting = len(waited)

        def wait() -> object:
            assert waiting == 0, "waited for one forward before the next was launched"
            waited.append(threading.current_thread().name)
            return copy.numpy()

        return wait

    monkeypatch.setattr(predictor_module, "to_device", lambda array, _: torch.from_numpy(array))
    monkeypatch.setattr(predictor_module, "to_host", to_host)
    window = Window.from_bounds(0, 0, *shape)
    expected = predictor(model, tiling).predict(reader(data), window, probabilities=True).mask
    waited.clear()
    on_gpu = predictor(model, tiling)
    monkeypatch.setattr(on_gpu, "_device", types.SimpleNamespace(type="cuda"))
    assert (on_gpu.predict(reader(data), window).mask == expected).all()
    assert len(waited) == tiling.num_patches > 4
    assert not any(name.startswith("device") for name in waited)
