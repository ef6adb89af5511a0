"""The laws on a real GPU; the same code runs on a CPU in the other tests."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

import pipeline as sm
from pipeline.grid import Window, blend_tiling, exact_tiling
from pipeline.infer import choose_batch, device_thread
from pipeline.infer.device import to_device
from pipeline.model import NOT_FINITE, EngineSpec, Model, left_out_px, make_engine
from pipeline.model.lean import ConvReLU, lean
from pipeline.model.torch_engine import TorchEngine
from tests.networks import (
    multilabel_model,
    predict_by_tiles,
    predictor,
    random_scene,
    reader,
    unet_model,
)
from tests.scenes import save_unet, smooth_values, write_scene

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def _spec(precision: str = "float32", **changes: Any) -> EngineSpec:
    common = {"backend": "torch", "device": "cuda", "precision": precision, "threads": 2, "one_size": True}
    return EngineSpec.model_validate({**common, **changes})


def _tiling(model: Model, shape: tuple[int, int], core: int, *, trim_px: int = 0, tile: int = 64) -> Any:
    return exact_tiling(
        shape,
        core_hw=(core, core),
        halo_px=model.traits.halo_px or 0,
        stride=model.traits.stride,
        margin_px=model.traits.margin_px or left_out_px(model.network, trim_px),
        sizes=model.traits.sizes,
        tile_px=tile,
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_stored_values_arrive_as_they_are(dtype: type) -> None:
    data = np.random.default_rng(0).integers(0, 200, (3, 64, 65)).astype(dtype)
    there = to_device(data, torch.device("cuda"))
    assert there.is_cuda
    assert (there.to(torch.float32).cpu().numpy() == data.astype(np.float32)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fused_convolution_is_the_convolution(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for ins, outs, side in ((4, 64, 96), (64, 128, 40), (3, 5, 17)):
        conv = nn.Conv2d(ins, outs, 3, padding=1).cuda().to(dtype).to(memory_format=torch.channels_last)
        x = torch.randn(2, ins, side, side, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            expected = torch.relu(conv(x).float())
            assert torch.allclose(ConvReLU(conv)(x).float(), expected, atol=0.02, rtol=0.02)


def test_lean_networks_use_fused_convolutions_only_where_precision_is_low() -> None:
    network = unet_model(depth=2).network
    for dtype, fused in ((torch.float32, False), (torch.bfloat16, True)):
        made = lean(network, device="cuda", dtype=dtype)
        assert made.computes_itself
        assert any(isinstance(module, ConvReLU) for module in made.network.modules()) == fused


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("trim", [False, True])
def test_a_recorded_forward_is_the_forward(precision: str, *, trim: bool) -> None:
    model = unet_model(depth=2, width=8)
    spec = _spec(precision, trim_px=24 if trim else 0)
    shape = (1, 2, 128, 160)
    eager, recorded = make_engine(model, spec), make_engine(model, spec)
    for labels in (True, False):
        recorded.prepare(shape, labels=labels)
    assert isinstance(recorded, TorchEngine)
    assert len(recorded._replays) == 2
    for seed in range(3):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).cuda()
        x[0, 0, 60, 70 + seed] = torch.nan
        one, other = eager.label(x), recorded.label(x)
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)
        assert bool((one == NOT_FINITE).any())
        assert torch.equal(torch.nan_to_num(eager.run(x)), torch.nan_to_num(recorded.run(x)))


def test_thresholds_are_recorded_too() -> None:
    model = multilabel_model((0.2, 0.5, 0.9), depth=2)
    engine = make_engine(model, _spec())
    engine.prepare((1, 2, 64, 64), labels=True)
    assert isinstance(engine, TorchEngine)
    assert engine._replays
    x = torch.randn(1, 2, 64, 64).cuda()
    labels = engine.label(x)
    assert labels is not None
    p = torch.sigmoid(engine.run(x)[0])
    cuts = torch.tensor([0.2, 0.5, 0.9], device="cuda")[:, None, None]
    sure = (p - cuts).abs() > 1e-5
    assert bool((labels == (p >= cuts))[sure].all())


class _Asks(nn.Module):
    """Decides by a value that is on the GPU: cannot be recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return y + 100.0 * torch.tensor([0.0, 1.0, 0.0], device=x.device)[:, None, None] if x.sum() > 0 else y


def test_what_cannot_be_recorded_runs_as_it_is() -> None:
    spec = unet_model(depth=2).spec
    model = Model(spec=spec, network=_Asks().eval(), digest="asks", cacheable=False)
    engine = make_engine(model, _spec())
    engine.prepare((1, 2, 32, 32), labels=True)
    assert isinstance(engine, TorchEngine)
    assert not engine._replays
    ones = torch.ones(1, 2, 32, 32, device="cuda")
    more, less = engine.label(ones), engine.label(-ones)
    assert more is not None
    assert bool((more == 1).all())
    assert less is not None


def _eager_whole(model: Model, data: NDArray[Any], halo: int = 64) -> NDArray[np.float32]:
    """One forward over the scene by plain PyTorch on the GPU, mirrored by NumPy."""
    mean, std = model.spec.scaling.mean[0], model.spec.scaling.std[0]
    after = [halo + (-(n + 2 * halo)) % 16 for n in data.shape[1:]]
    x = np.pad((data.astype(np.float32) - mean) / std, ((0, 0), (halo, after[0]), (halo, after[1])), mode="reflect")
    network = model.network.cuda()
    try:
        with torch.inference_mode():
            logits = network(torch.from_numpy(x.astype(np.float32))[None].cuda())[0]
        p = torch.softmax(logits, dim=0).cpu().numpy()
    finally:
        model.network.cpu()
    return p[:, halo : halo + data.shape[1], halo : halo + data.shape[2]]


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
@pytest.mark.parametrize("trim", [False, True])
def test_exact_law(upsampling: str, *, trim: bool) -> None:
    model = unet_model(depth=3, width=8, upsampling=upsampling)
    data = random_scene(2, (203, 170))
    trim_px = (model.traits.halo_px or 0) if trim else 0
    tiling = _tiling(model, (203, 170), 64, trim_px=trim_px)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    reference = _eager_whole(model, data)
    result = predict_by_tiles(model, tiling, reader(data), device="cuda", trim_px=trim_px)
    assert result.probabilities is not None
    assert np.abs(result.probabilities - reference).max() <= 1e-5
    top = np.sort(reference, axis=0)
    assert ((result.mask == reference.argmax(0)) | (top[-1] - top[-2] < 2e-5)).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_classes_do_not_depend_on_tiles(precision: str) -> None:
    model, shape = unet_model(depth=2, width=8), (300, 260)
    data = random_scene(2, shape)
    whole = Window.from_bounds(0, 0, *shape)
    masks = []
    for tile in (64, 128, 400):
        tiling = _tiling(model, shape, 64, tile=tile)
        masks.append(predict_by_tiles(model, tiling, reader(data), device="cuda", precision=precision).mask)
        engine = predictor(model, tiling, device="cuda", precision=precision)
        masks.append(engine.predict(reader(data), whole).mask)
    assert all(np.array_equal(masks[0], mask) for mask in masks[1:])


def test_low_precision_flips_few_classes() -> None:
    model, shape = unet_model(depth=3, width=16), (512, 512)
    data = smooth_values(2, shape)
    masks = [
        predict_by_tiles(model, _tiling(model, shape, 128), reader(data), device="cuda", precision=precision).mask
        for precision in ("float32", "bfloat16")
    ]
    assert 0 <= (masks[0] != masks[1]).mean() < 0.02


def test_batches_blend_to_the_same() -> None:
    model, shape = unet_model(depth=2, width=8, norm="instance"), (300, 260)
    data = random_scene(2, shape)
    found = []
    for batch, tile in ((1, 64), (4, 64), (4, 300)):
        tiling = blend_tiling(
            shape, patch_px=64, overlap_px=16, stride=4, margin_px=0, sizes=model.traits.sizes, tile_px=tile
        )
        found.append(predict_by_tiles(model, tiling, reader(data), device="cuda", batch=batch))
    probabilities = [one.probabilities for one in found]
    assert all(p is not None for p in probabilities)
    assert np.abs(probabilities[0] - probabilities[1]).max() <= 1e-5  # type: ignore[operator]
    assert np.array_equal(found[1].mask, found[2].mask)


def test_a_batch_is_measured() -> None:
    model = unet_model(depth=2, width=8, norm="instance")
    made = choose_batch(model, _spec("bfloat16"), device_thread(threads=2), (64, 64), largest=16)
    assert 1 < made.batch <= 16
    assert made.seconds is not None


@contextlib.contextmanager
def _at_most(nbytes: int) -> Iterator[None]:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + nbytes) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_d5_a_patch_too_large_for_the_gpu_is_cut() -> None:
    model, shape = unet_model(depth=2, width=32), (1500, 1500)
    data = smooth_values(2, shape)
    tiling = _tiling(model, shape, 1500, tile=1500)
    whole = Window.from_bounds(0, 0, *shape)
    roomy = predictor(model, tiling, device="cuda").predict(reader(data), whole)
    gc.collect()  # what was recorded keeps its memory as long as its engine lives
    with _at_most(450_000_000):
        crowded = predictor(model, tiling, device="cuda").predict(reader(data), whole)
    assert roomy.splits == 0
    assert crowded.splits > 0
    assert (roomy.mask != crowded.mask).mean() < 1e-4


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = smooth_values(2, (700, 900))
    return write_scene(tmp_path_factory.mktemp("scene") / "scene.tif", data, tiled=True, blockxsize=256, blockysize=256)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return save_unet(tmp_path_factory.mktemp("model") / "m", depth=3, width=16)


def _mask(result: Any) -> NDArray[Any]:
    with rasterio.open(result.mask_path) as file:
        found: NDArray[Any] = file.read()
    return found


def test_segment_on_the_gpu_is_segment_on_the_cpu(scene: Path, model: Model, tmp_path: Path) -> None:
    common = {"precision": "float32", "vectors": "none", "patch": 384, "verify": 3}
    cpu = sm.segment(scene, model, tmp_path / "cpu", device="cpu", **common)
    gpu = sm.segment(scene, model, tmp_path / "gpu", device="cuda", **common)
    assert gpu.summary["plan"]["device"] == "cuda"
    assert (_mask(cpu) != _mask(gpu)).mean() < 1e-4


@pytest.mark.parametrize("options", [{"workers": 2}, {"cluster": "cuda"}, {"tile": 700}, {"deterministic": True}])
def test_the_same_bytes_however_the_work_is_shared(
    scene: Path, model: Model, tmp_path: Path, options: dict[str, Any]
) -> None:
    common = {"precision": "bfloat16", "vectors": "none", "patch": 384, "device": "cuda"}
    one = sm.segment(scene, model, tmp_path / "one", **common)
    other = sm.segment(scene, model, tmp_path / "other", **{**common, **options})
    assert one.mask_path.read_bytes() == other.mask_path.read_bytes()
