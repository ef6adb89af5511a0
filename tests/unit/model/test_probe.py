"""Known answers: halo and stride are measured, and networks that cannot be tiled exactly are found out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.model import probe
from tests.networks import unet_model


@pytest.mark.parametrize(("depth", "halo"), [(2, 24), (3, 48), (4, 96), pytest.param(5, 192, marks=pytest.mark.slow)])
def test_known_halos_of_the_plain_unet(depth: int, halo: int) -> None:
    traits = probe(unet_model(depth=depth, width=2).network, bands=2)
    assert (traits.stride, traits.halo_px, traits.tiling) == (2**depth, halo, "exact")


def test_valid_padding_drops_92_px_at_depth_4() -> None:
    traits = probe(unet_model(depth=4, width=2, padding="valid").network, bands=2)
    assert (traits.margin_px, traits.size_multiple, traits.size_remainder) == (92, 16, 12)
    assert traits.halo_px is not None
    assert traits.halo_px >= 92


@pytest.mark.parametrize("norm", ["group", "instance"])
def test_norms_over_the_patch_go_to_blend(norm: str) -> None:
    traits = probe(unet_model(depth=2, norm=norm).network, bands=2)
    assert traits.tiling == "blend"
    assert traits.reason


def test_aligned_corners_are_never_exact() -> None:
    network = unet_model(depth=3, upsampling="bilinear").network
    for module in network.modules():
        if isinstance(module, nn.Upsample):
            module.align_corners = True
    assert probe(network, bands=2).tiling == "blend"


class _SqueezeExcite(nn.Module):
    """A global mean in disguise: no class name gives it away."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y * y.mean(dim=(-2, -1), keepdim=True)


class _Dropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


def test_global_context_and_randomness_are_found_by_behaviour() -> None:
    assert probe(_SqueezeExcite().eval(), bands=2).tiling == "blend"
    random = probe(_Dropout().eval(), bands=2)
    assert (random.tiling, random.deterministic) == ("blend", False)


def test_plain_convolutions_need_their_radius() -> None:
    traits = probe(nn.Sequential(nn.Conv2d(2, 4, 5, padding=2), nn.Conv2d(4, 2, 3, padding=1)).eval(), bands=2)
    assert (traits.stride, traits.halo_px) == (1, 3)


class _Halving(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 2)


class _Tuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize("network", [_Tuple(), nn.Flatten()])
def test_d5_wrong_output_is_refused(network: nn.Module) -> None:
    with pytest.raises(ModelError, match="MD-005"):
        probe(network.eval(), bands=2)


def test_memory_is_measured_not_guessed() -> None:
    """Twice the width holds about twice the memory."""
    narrow = probe(unet_model(depth=2, width=4).network, bands=2).bytes_per_px
    wide = probe(unet_model(depth=2, width=8).network, bands=2).bytes_per_px
    assert 1.7 < wide / narrow < 2.1


def test_a_network_that_always_fails_is_refused() -> None:
    with pytest.raises(ModelError, match="MD-007"):
        probe(nn.Conv2d(5, 2, 3).eval(), bands=2)


def test_traits_survive_the_cache(tmp_path: object) -> None:
    from pipeline.model.traits import load_traits, save_traits

    traits = probe(nn.Conv2d(2, 4, 3, padding=1).eval(), bands=2)
    save_traits("some-key", traits)
    assert load_traits("some-key") == traits
    assert load_traits("another-key") is None


def test_half_resolution_outputs_are_refused() -> None:
    with pytest.raises(ModelError, match="MD-005"):
        probe(nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), nn.Identity()).eval(), bands=2)
    assert torch.is_tensor(_Halving()(torch.zeros(1, 2, 4, 4)))
