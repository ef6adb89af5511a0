"""The published shapes, the switchable skips, and what the network refuses."""

from __future__ import annotations

import pytest
import torch

from pipeline.model import UNet, UNetConfig
from pipeline.model.lean import fold_batch_norm
from tests.networks import unet_model


def test_the_published_network_maps_572_to_388() -> None:
    network = UNet(UNetConfig(bands=1, outputs=2, width=2, padding="valid", norm="none")).eval()
    assert network(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear", "nearest"])
@pytest.mark.parametrize("norm", ["batch", "group", "instance", "none"])
def test_same_padding_keeps_the_size(upsampling: str, norm: str) -> None:
    config = UNetConfig(bands=3, outputs=4, width=2, depth=3, upsampling=upsampling, norm=norm)  # type: ignore[arg-type]
    assert UNet(config).eval()(torch.zeros(2, 3, 48, 64)).shape == (2, 4, 48, 64)


def test_sides_that_a_pooling_would_cut_are_refused() -> None:
    network = UNet(UNetConfig(bands=1, outputs=2, width=2, depth=3)).eval()
    with pytest.raises(ValueError, match="multiples of 8"):
        network(torch.zeros(1, 1, 64, 60))


@pytest.mark.parametrize("skips", [True, False])
def test_skips_bring_back_where(skips: bool) -> None:  # noqa: FBT001
    """With the bottleneck silenced, what is left comes over the skips, at its own place; without them, nothing does."""
    network = unet_model(depth=3, skips=skips).network
    assert isinstance(network, UNet)
    network.bottleneck.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
    x = torch.zeros(1, 2, 64, 64)
    x[..., 31, 33] = 5.0
    with torch.inference_mode():
        change = (network(x) - network(torch.zeros_like(x))).abs().sum(dim=1)[0]
    if not skips:
        assert not change.any()
        return
    row, col = divmod(int(change.argmax()), 64)
    assert change.max() > 0
    assert abs(row - 31) <= 2
    assert abs(col - 33) <= 2


def test_skips_widen_the_decoder() -> None:
    without, with_ = (sum(p.numel() for p in unet_model(skips=s).network.parameters()) for s in (False, True))
    assert without < with_


def test_folding_batch_norm_changes_nothing_but_low_bits() -> None:
    import copy

    network = unet_model(depth=3).network
    x = torch.randn(1, 2, 64, 64)
    folded = fold_batch_norm(copy.deepcopy(network))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    with torch.inference_mode():
        assert torch.allclose(folded(x), network(x), atol=1e-4)


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("upsampling", ["transposed", "bilinear", "nearest"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_trimmed_forward_is_the_middle_of_the_whole_one(depth: int, upsampling: str, *, skips: bool) -> None:
    torch.manual_seed(0)
    network = UNet(
        UNetConfig.model_validate(
            {"bands": 3, "outputs": 2, "depth": depth, "width": 4, "upsampling": upsampling, "skips": skips}
        )
    ).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    stride, side = 2**depth, 16 * 2**depth
    x = torch.randn(1, 3, side, side + stride)
    with torch.inference_mode():
        whole = network(x)
        for trim in range(0, side // 2, stride):
            left_out = network.left_out(trim)
            made = network(x, trim)
            assert max(0, trim - 2) <= left_out <= trim
            assert made.shape[-2:] == (side - 2 * left_out, side + stride - 2 * left_out)
            inner = made[
                ..., trim - left_out : side - left_out - trim, trim - left_out : side + stride - left_out - trim
            ]
            expected = whole[..., trim : side - trim, trim : side + stride - trim]
            assert torch.allclose(inner, expected, atol=1e-6 * float(whole.abs().max()))


@pytest.mark.parametrize(("changes", "can"), [({}, True), ({"padding": "valid"}, False), ({"norm": "group"}, False)])
def test_only_local_networks_are_trimmed(changes: dict[str, str], *, can: bool) -> None:
    config = {"bands": 3, "outputs": 2, "depth": 2, "width": 8, **changes}
    assert UNet(UNetConfig.model_validate(config)).can_trim is can
