"""The plan: frozen, printed, bounded by the budget."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ModelError, ResourceError, UsageError
from pipeline.grid import SizeRule, balanced_core, exact_tiling
from pipeline.infer import Calibration
from pipeline.model import EngineSpec, Model, ModelSpec, Scaling, model_from_module, openvino
from pipeline.run import demand, room
from pipeline.run.choose import EngineChoice
from pipeline.run.plan import Plan, make_plan
from pipeline.run.settings import SegmentSettings, make_settings
from pipeline.run.tilings import lay_exact, patch_sizes
from pipeline.run.workers import tiles_in_flight
from pipeline.scene import open_scene
from tests.networks import unet_model


@pytest.fixture(scope="module")
def model() -> Model:
    return unet_model(depth=2)


def _scene(shape: tuple[int, int] = (4000, 5000)) -> object:
    import xarray as xr
    from pyproj import CRS

    array = xr.DataArray(
        np.broadcast_to(np.uint16(1), (2, *shape)),
        dims=("band", "y", "x"),
        coords={
            "y": np.arange(shape[0])[::-1] * 10.0,
            "x": np.arange(shape[1]) * 10.0,
            "spatial_ref": xr.DataArray(0, attrs={"crs_wkt": CRS.from_epsg(32633).to_wkt()}),
        },
    )
    return open_scene(array)


def _plan(model: Model, **options: object) -> Plan:
    return make_plan(_scene(), model, make_settings({"precision": "float32", **options}))  # type: ignore[arg-type]


def test_a_plan_survives_json(model: Model) -> None:
    for options in ({}, {"tiling": "blend", "patch": 256}):
        plan = _plan(model, **options)
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))).digest == plan.digest


def test_less_memory_means_smaller_patches_and_the_budget_holds(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets = {"800MB": 0.8e9, "1200MB": 1.2e9, "3GB": 3e9}
    for memory, nbytes in budgets.items():
        assert _plan(model, memory=memory).peak_bytes <= 1.15 * nbytes
    cost = Calibration(fixed_s=0.0, s_per_px=1e-7, fixed_bytes=0.0, bytes_per_px=300.0)
    monkeypatch.setattr("pipeline.run.basis.measured_cost", lambda *_, **__: cost)
    least, middle, most = (math.prod(_plan(model, memory=memory).tiling.patch_hw) for memory in budgets)
    assert least < middle <= most


def test_more_classes_shrink_the_patch() -> None:
    def many(classes: int) -> Model:
        names = tuple(f"c{i}" for i in range(classes))
        spec = ModelSpec(name="many", bands=("a", "b"), classes=names, scaling=Scaling.identity(2))
        return model_from_module(torch.nn.Conv2d(2, classes, 1), spec)

    few, lots = (_plan(many(n), memory="1GB", backend="torch") for n in (4, 200))  # OpenVINO makes them in strips
    assert math.prod(lots.tiling.patch_hw) < math.prod(few.tiling.patch_hw)
    assert lots.forward_bytes <= 1.1 * max(few.forward_bytes, 4e8)


def test_probabilities_of_many_classes_stay_within_the_memory_given(model: Model) -> None:
    """Tiles in flight hold every class of each pixel, whatever the forward takes."""
    cost = Calibration(fixed_s=0.0, s_per_px=1e-7, fixed_bytes=0.0, bytes_per_px=150.0)
    names = tuple(f"c{i}" for i in range(100))
    many = dataclasses.replace(model, spec=model.spec.model_copy(update={"classes": names}))
    classes, nbytes = _lay(many, cost, (8192, 8192), 96, memory="1.5GB")
    kept, _ = _lay(many, cost, (8192, 8192), 96, memory="1.5GB", probabilities=True)
    assert math.prod(kept) < math.prod(classes) / 3
    assert nbytes <= 1.5e9
    tiles = tiles_in_flight(make_settings({}), "cpu") * math.prod(kept)
    outputs = (150 + 8 * 100) * math.prod(kept)  # a forward, its outputs and what activation makes of them
    assert room.LIBRARIES_BYTES["cpu"] + outputs + 4 * 100 * tiles <= 1.5e9


@pytest.mark.parametrize("options", [{}, {"probabilities": True}])
def test_averaging_images_of_many_classes_stays_within_the_memory_given(
    model: Model, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """OpenVINO's outputs, twice; what was turned back; and the sum."""
    cost = Calibration(fixed_s=0.0, s_per_px=1e-7, fixed_bytes=0.0, bytes_per_px=150.0)
    monkeypatch.setattr("pipeline.run.basis.measured_cost", lambda *_, **__: cost)
    names = tuple(f"c{i}" for i in range(100))
    many = dataclasses.replace(model, spec=model.spec.model_copy(update={"classes": names}))
    plan = _plan(many, tta="flips", backend="openvino", memory="1GB", **options)
    outputs = (150 + 16 * 100) * math.prod(plan.tiling.patch_hw)
    assert outputs <= plan.forward_bytes
    assert plan.peak_bytes <= 1e9


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("classes", [4, 100, 250])
def test_blending_any_number_of_classes_stays_within_the_memory_given(
    model: Model, monkeypatch: pytest.MonkeyPatch, classes: int, *, kept: bool
) -> None:
    """Every class of each pixel of the tiles in flight is summed."""
    cost = Calibration(fixed_s=0.0, s_per_px=1e-7, fixed_bytes=0.0, bytes_per_px=150.0)
    monkeypatch.setattr("pipeline.run.basis.measured_cost", lambda *_, **__: cost)
    names = tuple(f"c{i}" for i in range(classes))
    many = dataclasses.replace(model, spec=model.spec.model_copy(update={"classes": names}))
    for options in ({}, {"memory": "1GB"}):
        plan = _plan(many, tiling="blend", backend="torch", probabilities=kept, **options)
        assert plan.peak_bytes <= (1e9 if options else 1.75e9)
        assert 4 * (classes + 1) * math.prod(plan.tiling.tile_hw) * plan.in_flight <= plan.peak_bytes


def test_patches_are_equal_parts(model: Model) -> None:
    """No sliver at the end: the last core is more than half a core."""
    plan = _plan(model, memory="1GB")
    core = plan.tiling.cols.step
    assert 5000 - (plan.tiling.cols.count - 1) * core > core / 2


def test_too_little_memory_is_refused_with_the_number_needed(model: Model) -> None:
    hungry = dataclasses.replace(model, _traits=[model.traits.model_copy(update={"bytes_per_px": 1e6})])
    with pytest.raises(ResourceError, match="RS-004") as caught:
        make_plan(_scene(), hungry, make_settings({"memory": "610MB"}))  # type: ignore[arg-type]
    assert "--memory" in caught.value.fix


def test_the_memory_that_a_message_names_suffices(model: Model) -> None:
    """What the engine takes whatever the patch counts, and the number is rounded up."""
    spec = EngineSpec(backend="openvino", device="cpu", precision="float32", threads=2, one_size=True)
    engine = EngineChoice(spec=spec, reason="", flips_frac=None, worth_measuring=True)
    cost = Calibration(fixed_s=0.0, s_per_px=1e-7, fixed_bytes=2.5e8, bytes_per_px=400.0)
    rule = patch_sizes(model.traits, "none")

    def check(memory: str) -> None:
        settings = make_settings({"memory": memory})
        made = demand.demand_of(_scene(), model, settings, engine, cost, room.room_of(settings, "cpu"))  # type: ignore[arg-type]
        made.check_least_patch(model.traits, rule, 400)

    with pytest.raises(ResourceError, match="RS-004") as caught:
        check("1GB")
    told = re.search(r"--memory (\S+)GB,", caught.value.fix)
    assert told
    check(f"{told[1]}GB")
    with pytest.raises(ResourceError, match="RS-004"):
        check(f"{float(told[1]) - 0.1:.1f}GB")


def test_exact_is_refused_for_a_network_that_is_not(model: Model) -> None:
    instance = unet_model(depth=2, norm="instance")
    with pytest.raises(ModelError, match="MD-011"):
        _plan(instance, tiling="exact")
    assert _plan(instance).tiling.mode == "blend"
    assert _plan(model).tiling.mode == "exact"
    assert _plan(model, overlap=48, patch=128).tiling.mode == "blend"


def test_network_padding_needs_a_network_that_pads() -> None:
    with pytest.raises(UsageError, match="drops its borders"):
        _plan(unet_model(depth=2, padding="valid"), padding="network")
    with pytest.raises(UsageError, match="blending"):
        _plan(unet_model(depth=2, norm="instance"), padding="network")


@pytest.mark.parametrize("classes", [4, 100, 250])
def test_a_tile_of_small_patches_stays_within_the_memory_given(
    model: Model, monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    """Patches shrink with the number of classes; tiles, which hold several then, must do so too."""
    cost = Calibration(fixed_s=0.0, s_per_px=1e-7, fixed_bytes=0.0, bytes_per_px=150.0)
    monkeypatch.setattr("pipeline.run.basis.measured_cost", lambda *_, **__: cost)
    names = tuple(f"c{i}" for i in range(classes))
    many = dataclasses.replace(model, spec=model.spec.model_copy(update={"classes": names}))
    for tile in (512, 4096):
        plan = _plan(many, tile=tile, backend="openvino", probabilities=True, memory="1GB")
        assert plan.peak_bytes <= 1e9
        assert plan.tiling.tile_hw[0] % plan.tiling.rows.step == 0
    few = _plan(many, tile=512, patch=128, backend="openvino", memory="1GB")
    assert min(few.tiling.tile_hw) >= 512  # classes alone take little: as was asked for


def test_the_tile_is_whole_patch_cores(model: Model) -> None:
    for tile in (1, 300, 5000):
        plan = _plan(model, patch=256, tile=tile)
        assert plan.tiling.tile_hw[0] % plan.tiling.rows.step == 0
        assert plan.tiling.tile_hw[0] >= min(tile, 1)
    assert _plan(model, patch=256, tile=1).tiling.rows == _plan(model, patch=256, tile=999).tiling.rows


def test_a_tolerance_shortens_the_halo_and_says_by_how_much(model: Model) -> None:
    deep = unet_model(depth=4)
    assert deep.traits.halo_px == 96
    import xarray as xr

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 1000, (2, 700, 800)).astype(np.uint16)
    scene = open_scene(xr.DataArray(pixels, dims=("band", "y", "x")), allow_no_crs=True)
    plans = {
        tolerance: make_plan(scene, deep, make_settings({"halo_tolerance": tolerance}))
        for tolerance in (1e-9, 1e-3, 0.2)
    }
    halos = [plan.tiling.halo_px for plan in plans.values()]
    assert halos[0] == 96
    assert halos == sorted(halos, reverse=True)
    assert halos[-1] < 96
    assert all(halo % 16 == 0 for halo in halos)
    assert "change probabilities by at most" in plans[0.2].reason
    assert "no smaller halo" in plans[1e-9].reason
    with pytest.raises(UsageError, match="halo-tolerance"):
        make_plan(scene, deep, make_settings({"halo_tolerance": 0.1, "tiling": "blend"}))


@pytest.mark.skipif(not openvino.available(), reason="openvino is an extra, for x86 CPUs")
def test_what_others_networks_compute_in_the_halo_is_left_out_where_that_can_be_done() -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(2, 4, 3, padding=1), *(torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(11))]
    names, scaling = ("a", "b", "c", "d"), Scaling.identity(2)
    model = model_from_module(
        torch.nn.Sequential(*layers), ModelSpec(name="chain", bands=("a", "b"), classes=names, scaling=scaling)
    )
    plan = _plan(model, backend="openvino")
    assert plan.engine.trim_px == plan.tiling.halo_px == 12
    assert 4 <= plan.engine.left_out_px == plan.tiling.rows.margin == plan.tiling.cols.margin < 12
    assert plan.summary()["left_out_px"] == plan.engine.left_out_px
    for options in ({"backend": "torch"}, {"backend": "openvino", "padding": "network"}, {"tiling": "blend"}):
        plan = _plan(model, **options)
        assert (plan.engine.trim_px, plan.engine.left_out_px, plan.tiling.rows.margin) == (0, 0, 0)


def test_a_patch_beyond_the_memory_given_is_refused(model: Model) -> None:
    with pytest.raises(ResourceError, match="2048 x 2048 px need") as caught:
        _plan(model, memory="700MB", patch=2048)
    assert caught.value.code == "RS-004"
    assert "--memory" in str(caught.value.fix)


def test_a_warning_says_that_memory_makes_a_wide_halo_expensive(model: Model) -> None:
    plan = _plan(model)

    def warnings(core: int) -> list[str]:
        sizes = SizeRule(multiple=4)
        shape, rule = (4000, 5000), {"halo_px": 400, "stride": 4, "margin_px": 0, "sizes": sizes}
        tiling = exact_tiling(shape, core_hw=(core, core), tile_px=core, **rule)  # type: ignore[arg-type]
        return dataclasses.replace(plan, tiling=tiling).warnings

    assert warnings(512) == []
    [text] = warnings(200)
    assert text.startswith("each pixel is computed 25 times: the network sees 400 px beyond it")
    assert "1000 x 1000 px; give more --memory" in text
    assert _plan(model, tiling="blend", overlap=100, patch=128).warnings == []  # as was asked for


def test_memory_that_a_cluster_gives_is_taken_and_nobody_else_s(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A budget is 1.75 GB where nobody has said, however much there is: results do not follow free memory."""

    def memory(of: Callable[..., int], **options: object) -> int:
        return of(make_settings(options), "cpu") + room.LIBRARIES_BYTES["cpu"]

    def usual(settings: SegmentSettings, device: str) -> int:
        return room.room_of(settings, device).forward_bytes

    monkeypatch.setattr(room, "_available_bytes", lambda: 20_000_000_000)
    (tmp_path / "jobs.yaml").write_text("kind: slurm\nworkers: 64\ncores: 7\nmemory: 10GB")
    jobs = str(tmp_path / "jobs.yaml")
    assert memory(usual) == memory(usual, cluster="tcp://127.0.0.1:8786") == 1_750_000_000
    assert memory(usual, cluster=jobs) == memory(room.measuring_bytes, cluster=jobs) == 10_000_000_000
    assert memory(room.measuring_bytes) == 7_000_000_000  # while the network is measured
    assert memory(room.measuring_bytes, workers=3) == 4_000_000_000
    assert memory(room.measuring_bytes, memory="3GB") == 3_000_000_000
    assert memory(room.budget_left, cluster=jobs) <= 1_750_000_000  # of the host that submits


def test_d15_an_overlap_that_leaves_seams_is_refused_unless_insisted_on(model: Model) -> None:
    with pytest.raises(UsageError, match=r"CF-006.*--overlap 32 .* twice the 24 px"):
        _plan(model, overlap=32, patch=128)
    assert _plan(model, overlap=32, patch=128, tiling="blend").tiling.overlap_px == 32


def _on_gpu(model: Model, monkeypatch: pytest.MonkeyPatch, free_bytes: int, **options: object) -> demand.Demand:
    """What a patch may take on a GPU of which others have left so much; nothing is computed there."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free_bytes, 80_000_000_000))
    spec = EngineSpec(backend="torch", device="cuda", precision="bfloat16", threads=1, one_size=True)
    engine = EngineChoice(spec=spec, reason="", flips_frac=None, worth_measuring=True)
    cost = Calibration(fixed_s=1e-3, s_per_px=1e-9, fixed_bytes=5e7, bytes_per_px=400.0)
    settings = make_settings({"memory": "6GB", **options})
    return demand.demand_of(_scene(), model, settings, engine, cost, room.room_of(settings, "cuda"))  # type: ignore[arg-type]


def test_on_a_cpu_two_inputs_count_and_on_a_gpu_one(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the next one is made while a forward goes on."""
    one_input = 4 * len(model.spec.bands)
    assert _on_gpu(model, monkeypatch, 40_000_000_000).forward_bytes_per_px == 400.0 + one_input
    spec = EngineSpec(backend="openvino", device="cpu", precision="float32", threads=1, one_size=True)
    engine = EngineChoice(spec=spec, reason="", flips_frac=None, worth_measuring=True)
    cost = Calibration(fixed_s=1e-3, s_per_px=1e-9, fixed_bytes=5e7, bytes_per_px=400.0)
    settings = make_settings({"memory": "6GB"})
    made = demand.demand_of(_scene(), model, settings, engine, cost, room.room_of(settings, "cpu"))  # type: ignore[arg-type]
    assert made.forward_bytes_per_px == 400.0 + 2 * one_input


def test_d12_memory_that_others_took_on_a_gpu_is_left_to_them(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "_most_px_on_gpu", lambda *_: math.inf)
    roomy, crowded = (_on_gpu(model, monkeypatch, free) for free in (40_000_000_000, 1_000_000_000))
    side = 2048, 2048
    assert math.isfinite(roomy.seconds(side))
    assert crowded.seconds(side) == math.inf
    assert crowded.nbytes((1024, 1024)) <= 0.8 * 1_000_000_000
    assert math.isfinite(crowded.seconds((1024, 1024)))


_NULL = Calibration(
    fixed_s=5e-5,
    s_per_px=4.6e-9,
    fixed_bytes=4e6,
    bytes_per_px=47.0,
    large_px=1 << 20,
    large_s_per_px=4.9e-9,
    first_s_per_px=2.25e-8,
)
"""Of a 1x1 convolution, measured on two cores."""
_UNET = Calibration(
    fixed_s=0.0,
    s_per_px=3.27e-7,
    fixed_bytes=2.5e7,
    bytes_per_px=216.0,
    saved_s_per_px=1.88e-7,
    saved_bytes_per_px=77.0,
    large_px=1 << 20,
    large_s_per_px=3.14e-7,
    first_s_per_px=2.67e-7,
)
"""Of a U-Net of width 16 in float32, measured on two cores with matrix units."""


def _lay(
    model: Model, cost: Calibration, shape: tuple[int, int], halo: int, **options: object
) -> tuple[tuple[int, int], float]:
    """The core that a network of this cost gets, and the memory that its patch takes."""
    spec = EngineSpec(
        backend="openvino",
        device="cpu",
        precision="float32",
        threads=2,
        one_size=True,
        trim_px=halo,
        left_out_px=halo - 2 if halo else 0,
    )
    engine = EngineChoice(spec=spec, reason="", flips_frac=None, worth_measuring=True)
    settings = make_settings(options)
    space = room.room_of(settings, "cpu")
    made = demand.demand_of(_scene(shape), model, settings, engine, cost, space, halo_px=halo)  # type: ignore[arg-type]
    tiling = lay_exact(shape, model, settings, made, network_padding=False)
    return (tiling.rows.step, tiling.cols.step), float(made.nbytes(tiling.patch_hw))


def test_a_network_that_computes_next_to_nothing_gets_few_tiles(model: Model) -> None:
    """Its forwards are as fast in small patches, and memory is used for the first time in them; each costs a task."""
    assert math.prod(_lay(model, _NULL, (16384, 16384), 0)[0]) >= 1_600_000
    assert math.prod(_lay(model, _NULL, (16384, 16384), 0, memory="3.5GB")[0]) >= 2048**2


def test_tiles_without_a_halo_lie_on_blocks_of_files(model: Model) -> None:
    for side in (4096, 8192, 14_000, 16_384):
        assert all(step % 256 == 0 for step in _lay(model, _NULL, (side, side), 0)[0])
    assert all(step <= 304 for step in _lay(model, _NULL, (300, 300), 0)[0])  # and no small scene grows for it


@pytest.mark.parametrize(("cost", "halo"), [(_NULL, 0), (_UNET, 96)], ids=["null", "unet"])
def test_patches_are_hardly_larger_for_larger_scenes(model: Model, cost: Calibration, halo: int) -> None:
    """Memory is flat in the size of the scene, unless --memory asks for the fastest that there is room for."""
    sides = (4096, 5000, 7000, 8192, 10_980, 16_384, 32_768, 50_000)
    peaks = [room.LIBRARIES_BYTES["cpu"] + _lay(model, cost, (side, side), halo)[1] for side in sides]
    assert max(peaks) <= 1.1 * min(peaks)


def test_memory_that_is_never_used_again_is_not_worth_having(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large scene pays for large patches, one that is soon done does not; nor do more workers with less for each."""
    spec = EngineSpec(backend="torch", device="cpu", precision="float32", threads=1, one_size=True)
    engine = EngineChoice(spec=spec, reason="", flips_frac=None, worth_measuring=True)
    per_px = {"fixed_s": 0.0, "s_per_px": 3e-8, "fixed_bytes": 0.0, "bytes_per_px": 100.0}
    monkeypatch.setattr(room, "LIBRARIES_BYTES", {"cpu": 0})

    def core(side: int, first: float, of_all: int | None = None, **options: object) -> tuple[int, int]:
        settings = make_settings({"memory": "4GB", **options})
        scene = _scene((side, side))
        made = demand.demand_of(
            scene,
            model,
            settings,
            engine,
            Calibration(**per_px, first_s_per_px=first),
            room.room_of(settings, "cpu"),
            num_pixels=of_all,
        )
        rule = {"halo_px": 96, "stride": 16, "sizes": SizeRule(multiple=16)}
        return balanced_core((side, side), seconds=made.seconds, once=made.seconds_once, **rule)  # type: ignore[arg-type]

    large, small = core(8192, 0.0), core(8192, 1e-7)
    assert math.prod(large) > 1.5 * math.prod(small) > 1_000_000
    assert core(8192, 1e-7, of_all=1000 * 8192**2) == large  # its engine goes on to other scenes
    assert math.prod(core(8192, 2e-8, workers=8)) < math.prod(core(8192, 2e-8))
    assert math.prod(core(8192, 1.0)) > 1_000_000


def test_on_a_gpu_the_host_holds_the_tiles_in_flight(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "_most_px_on_gpu", lambda *_: math.inf)
    roomy = _on_gpu(model, monkeypatch, 400_000_000_000)
    assert roomy.seconds((20_000, 20_000)) == math.inf
    assert math.isfinite(_on_gpu(model, monkeypatch, 400_000_000_000, memory="100GB").seconds((20_000, 20_000)))
    assert roomy.nbytes((512, 512)) == 512 * 512 * roomy.forward_bytes_per_px  # of the device; the tiles are elsewhere


def test_on_a_gpu_no_tensor_outgrows_its_index_and_tiles_outnumber_those_in_flight(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond 2**31 elements cuDNN took a hundred times as long."""
    heavy = model_from_module(model.network, model.spec, digest="heavy")
    monkeypatch.setattr(type(heavy), "traits", model.traits.model_copy(update={"bytes_per_px": 8000.0}))
    made = _on_gpu(heavy, monkeypatch, 400_000_000_000, memory="100GB")
    assert made.most_px * 8000 / 4 < 2**31
    assert made.seconds((1100, 1100)) == math.inf
    monkeypatch.setattr(type(heavy), "traits", model.traits)
    light = _on_gpu(heavy, monkeypatch, 400_000_000_000, memory="100GB")
    assert 4000 * 5000 / light.most_px >= 3 * tiles_in_flight(make_settings({}), "cuda") or light.most_px == 1024**2
    assert light.largest_px <= light.most_px
