"""Known answers: halo and stride are measured, and networks that cannot be tiled exactly are found out."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.model import probe
from pipeline.model.probe import count_outputs
from tests.networks import ResNet34UNet, unet_model


@pytest.mark.parametrize(("depth", "halo"), [(2, 24), (3, 48), (4, 96), (5, 192)])
def test_known_halos_of_the_plain_unet(depth: int, halo: int) -> None:
    traits = probe(unet_model(depth=depth, width=2).network, bands=2)
    assert (traits.stride, traits.halo_px, traits.tiling) == (2**depth, halo, "exact")


@pytest.mark.parametrize("trained", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_resnet_34_encoder_needs_a_halo_of_544_px(*, trained: bool) -> None:
    """450 px that the encoder sees, and what five steps of a decoder add; also where what is far off counts."""
    network = ResNet34UNet(3, 2)
    if trained:
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = None
            network.train()(torch.randn(1, 3, 256, 256))
    traits = probe(network.eval(), bands=3)
    assert (traits.stride, traits.halo_px, traits.tiling) == (32, 544, "exact")
    assert 449 + 32 < traits.evidence["reach_px"] <= 544


def test_outputs_may_depend_on_what_is_far_off() -> None:
    """Farther than a third of the patches that shifts are first looked for on."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 1, 3, padding=64, dilation=64) for _ in range(6)]
    traits = probe(nn.Sequential(*layers).eval(), bands=1)
    assert (traits.stride, traits.halo_px, traits.tiling) == (1, 384, "exact")


def test_footprints_on_strips_are_those_on_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"depth": 3}, {"depth": 2, "padding": "valid"}, {"depth": 2, "upsampling": "bilinear"}):
        network = unet_model(width=2, **options).network
        squares = probe(network, bands=2)
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules["pipeline.model.probe"], "_STRIPS_FROM", 1)
            strips = probe(network, bands=2)
        assert strips.halo_px == squares.halo_px
        assert strips.evidence["reach_px"] == squares.evidence["reach_px"]


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


@pytest.mark.parametrize("norm", ["group", "instance"])
def test_valid_padding_with_such_norms_is_blended_too(norm: str) -> None:
    """Its output at depth 4 is so small that the largest shifts leave nothing to compare."""
    assert probe(unet_model(depth=4, width=2, padding="valid", norm=norm).network, bands=2).tiling == "blend"


def test_aligned_corners_are_never_exact() -> None:
    network = unet_model(depth=3, upsampling="bilinear").network
    for module in network.modules():
        if isinstance(module, nn.Upsample):
            module.align_corners = True
    traits = probe(network, bands=2)
    assert (traits.tiling, traits.halo_px) == ("blend", None)
    assert "no shift of the input shifts the output alike" in traits.reason


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


def test_d8_global_context_and_randomness_are_found_by_behaviour() -> None:
    assert probe(_SqueezeExcite().eval(), bands=2).tiling == "blend"
    random = probe(_Dropout().eval(), bands=2)
    assert (random.tiling, random.deterministic) == ("blend", False)


class _Attention(nn.Module):
    """Every position of a pooled map looks at every other one."""

    def __init__(self, *, hand_made: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up = nn.Conv2d(2, 8, 8, stride=8), nn.ConvTranspose2d(8, 3, 8, stride=8)
        self.attention = None if hand_made else nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.down(x)
        tokens = pooled.flatten(2).transpose(1, 2)
        if self.attention is None:
            attended = (tokens @ tokens.transpose(1, 2)).softmax(dim=-1) @ tokens
        else:
            attended = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        out: Tensor = self.up((tokens + attended).transpose(1, 2).reshape(pooled.shape))
        return out


@pytest.mark.parametrize("hand_made", [False, True])
def test_attention_over_the_whole_patch_is_found_by_behaviour(*, hand_made: bool) -> None:
    traits = probe(_Attention(hand_made=hand_made).eval(), bands=2)
    assert (traits.tiling, traits.halo_px, traits.size_multiple) == ("blend", None, 8)
    assert "no shift of the input shifts the output alike" in traits.reason


def test_plain_convolutions_need_their_radius() -> None:
    traits = probe(nn.Sequential(nn.Conv2d(2, 4, 5, padding=2), nn.Conv2d(4, 2, 3, padding=1)).eval(), bands=2)
    assert (traits.stride, traits.halo_px) == (1, 3)


class _Tuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class _Dict(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": x}


class _Classes(nn.Module):
    """Takes the arg-max itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(dim=1, keepdim=True)


class _Decided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x > 0


class _FixedOutput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, size=(256, 256))


class _OneSize(nn.Module):
    """Takes 256 px only; at what resolution it answers is its own affair."""

    def __init__(self, answer: nn.Module) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (256, 256):
            msg = "256 px only"
            raise ValueError(msg)
        out: Tensor = self.answer(x)
        return out


WRONG = {
    "tuple": (_Tuple(), "returns tuple"),
    "dict": (_Dict(), "returns dict"),
    "flat": (nn.Flatten(), "expected one tensor"),
    "integers": (_Classes(), "torch.int64"),
    "booleans": (_Decided(), "torch.bool"),
    "half": (nn.AvgPool2d(2), "256 px gives 128 px and one of 384 px gives 192 px"),
    "half-convolution": (nn.Conv2d(2, 3, 3, stride=2, padding=1), "gives 128 px"),
    "a-third": (nn.MaxPool2d(3), "gives 85 px"),
    "a-quarter": (nn.Conv2d(2, 3, 4, stride=4), "gives 64 px"),
    "three-quarters": (nn.Upsample(scale_factor=0.75), "gives 192 px"),
    "double": (nn.Upsample(scale_factor=2), "gives 512 px"),
    "always-256": (_FixedOutput(), "one of 384 px gives 256 px"),
    "one-more": (nn.ZeroPad2d((1, 0, 1, 0)), "256 px gives 257 px"),
    "one-less": (nn.Conv2d(2, 3, 2), "256 px gives 255 px"),
    "one-size-half": (_OneSize(nn.AvgPool2d(2)), "256 px, the only size that the network takes, gives 128"),
}


@pytest.mark.parametrize("name", WRONG)
def test_d5_outputs_that_are_not_one_value_per_pixel_are_refused(name: str) -> None:
    network, told = WRONG[name]
    with pytest.raises(ModelError, match=rf"MD-005.*{told}"):
        probe(network.eval(), bands=2)


def test_d5_half_the_resolution_at_a_declared_size_is_no_margin() -> None:
    network = _OneSize(nn.AvgPool2d(2)).eval()
    network.fixed_side = 256  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"MD-005.*gives 128; expected the same size"):
        probe(network, bands=2)


def test_a_network_for_one_size_is_blended_from_patches_of_that_size() -> None:
    network = _OneSize(nn.Conv2d(2, 3, 3, padding=1)).eval()
    traits = probe(network, bands=2)
    assert (traits.tiling, traits.size_smallest, traits.size_largest) == ("blend", 256, 256)
    assert "256 px only" in traits.reason
    assert count_outputs(network, bands=2) == 3


def test_a_network_for_no_tried_size_is_refused() -> None:
    with pytest.raises(ModelError, match=r"MD-007.*fails on every square patch"):
        probe(nn.Linear(7, 3).eval(), bands=2)


class _Careless(nn.Module):
    """Pools without looking whether the side divides, and brings back what is left."""

    def __init__(self, factor: int, *, up: bool) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(factor, ceil_mode=up)
        self.up = nn.Upsample(scale_factor=factor)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(self.pool(x))
        return out


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("factor", [2, 8])
def test_a_network_that_cuts_odd_sides_is_given_whole_ones(factor: int, up: bool) -> None:  # noqa: FBT001
    traits = probe(_Careless(factor, up=up).eval(), bands=2)
    assert (traits.size_multiple, traits.size_remainder, traits.margin_px) == (factor, 0, 0)
    assert (traits.stride, traits.halo_px, traits.tiling) == (factor, 0, "exact")


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
