"""Two networks are one model only when they compute the same: structure counts as much as weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from pipeline.model import ModelSpec, Scaling, UNet, cache_folder, load_model, model_from_module, save_model
from tests.networks import unet_model

SPEC = ModelSpec(name="test", bands=("a", "b"), classes=("x", "y", "z"), scaling=Scaling.identity(2))


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _conv(**options: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, **options))


def test_dilation_makes_another_model_with_its_own_halo() -> None:
    near = model_from_module(_conv(padding=1), SPEC)
    far = model_from_module(_conv(padding=4, dilation=4), SPEC)
    assert near.digest != far.digest
    assert (near.traits.halo_px, far.traits.halo_px) == (1, 4)


class _Scaled(nn.Module):
    """A 3 x 3 or a dilated convolution, by a constant that `repr` does not show."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2, 3, 3))
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight, padding=self.dilation, dilation=self.dilation)


def test_constants_that_repr_leaves_out_count() -> None:
    near, far = _Scaled(1), _Scaled(4)
    assert repr(near) == repr(far)
    assert model_from_module(near, SPEC).digest != model_from_module(far, SPEC).digest


def test_buffers_outside_the_state_dict_and_shapes_count() -> None:
    digests = set()
    for value, shape in ((0.0, (1, 3, 1, 1)), (1.0, (1, 3, 1, 1)), (1.0, (3, 1, 1))):
        network = _conv(padding=1)
        network.register_buffer("bias", torch.full(shape, value), persistent=False)
        digests.add(model_from_module(network, SPEC).digest)
    assert len(digests) == 3


def test_an_address_in_the_text_of_a_network_does_not_count() -> None:
    class Odd(nn.Conv2d):
        def extra_repr(self) -> str:
            return f"<function f at {id(self):#x}>"

    digests = set()
    for _ in range(2):
        torch.manual_seed(0)
        digests.add(model_from_module(Odd(2, 3, 3, padding=1), SPEC).digest)
    assert len(digests) == 1


class _Hidden(nn.Module):
    """What it does lies where no digest sees it."""

    reach: ClassVar = {"px": 1}

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        d = self.reach["px"]
        return nn.functional.conv2d(x, self.weight, padding=d, dilation=d)


def test_traits_of_unknown_code_are_never_taken_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    before = model_from_module(_Hidden(), SPEC)
    assert before.traits.halo_px == 1
    monkeypatch.setitem(_Hidden.reach, "px", 4)
    after = model_from_module(_Hidden(), SPEC)
    assert after.digest == before.digest
    assert after.traits.halo_px == 4
    assert not list(cache_folder().rglob("*.json"))


def test_traits_are_measured_once_per_model_and_cached_where_somebody_vouches(monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline.model.model as room

    probed: list[nn.Module] = []
    measure = room.probe
    monkeypatch.setattr(
        room, "probe", lambda network, bands: (probed.append(network), measure(network, bands=bands))[1]
    )
    unknown = model_from_module(_conv(padding=1), SPEC)
    assert unknown.traits is unknown.traits
    assert len(probed) == 1
    for _ in range(2):
        assert model_from_module(_conv(padding=1), SPEC, digest="mine").traits.halo_px == 1
    assert len(probed) == 2


def test_another_architecture_in_model_json_is_another_model(tmp_path: Path) -> None:
    made = unet_model(depth=2, upsampling="bilinear")
    assert isinstance(made.network, UNet)
    before = save_model(tmp_path, made.network, made.spec)
    document = json.loads((tmp_path / "model.json").read_text())
    document["properties"]["scenemask:unet"]["upsampling"] = "nearest"
    (tmp_path / "model.json").write_text(json.dumps(document))
    after = load_model(tmp_path)
    assert after.digest != before.digest
    bare = [model_from_module(m.network, before.spec, digest="file").digest for m in (before, after)]
    assert bare[0] != bare[1]


def test_a_unet_that_was_changed_by_hand_is_another_model() -> None:
    made, changed = (unet_model(depth=2, upsampling="bilinear") for _ in range(2))
    assert made.digest == changed.digest
    for module in changed.network.modules():
        if isinstance(module, nn.Upsample):
            module.align_corners = True
    assert model_from_module(changed.network, changed.spec).digest != made.digest
