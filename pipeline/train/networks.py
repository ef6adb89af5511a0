"""The network that is trained: our U-Net, or one with an encoder that was trained on other pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError, UsageError
from pipeline.model import UNet, UNetConfig, load_model, save_model
from pipeline.model.export import save_as_onnx

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.model import ModelSpec
    from pipeline.train.settings import NetworkSettings

_FIRST_LAYER = "encoder.0.0.weight"
_OWN = {"depth", "width", "norm", "upsampling", "skips", "dropout"}


def make_network(settings: NetworkSettings, *, bands: int, outputs: int, seed: int) -> nn.Module:
    """A network with its first weights.

    Raises:
        ModelError: TR-021, the model to start from does not fit.
        UsageError: TR-022, the encoder is not known, or segmentation-models-pytorch is not installed.
    """
    torch.manual_seed(seed)
    if settings.encoder is not None:
        return _with_encoder(settings, bands=bands, outputs=outputs)
    network = UNet(UNetConfig(bands=bands, outputs=outputs, **settings.model_dump(include=_OWN)))
    if settings.start is not None:
        _start_from(network, settings, bands)
    return network


def save_trained(folder: Path, network: nn.Module, spec: ModelSpec, training: dict[str, Any], *, stride: int) -> None:
    """Write a model folder: our U-Net as weights, others as ONNX, which needs none of their packages to run."""
    if isinstance(network, UNet):
        save_model(folder, network, spec, training=training)
    else:
        save_as_onnx(folder, network, spec, training=training, stride=stride)


def set_frozen(network: nn.Module, *, frozen: bool) -> None:
    """The encoder's weights stand still; its normalisation goes on with what it was trained with."""
    parts = (network.encoder, network.bottleneck) if isinstance(network, UNet) else (network.encoder,)
    for part in parts:
        assert isinstance(part, nn.Module)
        for parameter in part.parameters():
            parameter.requires_grad_(not frozen)
        part.train(not frozen)


def _start_from(network: UNet, settings: NetworkSettings, bands: int) -> None:
    """Take over the weights of a trained model that fit."""
    assert settings.start is not None
    first = load_model(settings.start).network
    state, own = first.state_dict(), network.state_dict()
    if _FIRST_LAYER in state:
        state[_FIRST_LAYER] = _for_bands(state[_FIRST_LAYER], bands)
    fitting = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    if not isinstance(first, UNet) or _FIRST_LAYER not in fitting:
        raise ModelError(
            "none of its encoder's weights fit this network; depth, width and norm must be the same",
            code="TR-021",
            title="Model to start from does not fit",
            where=str(settings.start),
            fix="set network.depth, width and norm as that model has them; `scenemask inspect` shows them",
        )
    network.load_state_dict(own | fitting)


def _for_bands(weight: Tensor, bands: int) -> Tensor:
    """A first layer for another number of bands: bands repeat, and their sum keeps its size.

    Args:
        weight: `(channel, band, y, x)`.
        bands: Wanted.
    """
    before = weight.shape[1]
    if before == bands:
        return weight
    return weight[:, [band % before for band in range(bands)]] * (before / bands)


def _with_encoder(settings: NetworkSettings, *, bands: int, outputs: int) -> nn.Module:
    """A U-Net of segmentation-models-pytorch; it adapts the first layer to the bands itself."""
    assert settings.encoder is not None
    try:
        import segmentation_models_pytorch as smp  # noqa: PLC0415 - optional
    except ImportError as error:
        raise _no_encoder(f"encoders need segmentation-models-pytorch, which cannot be loaded: {error}") from error
    try:
        network: nn.Module = smp.Unet(
            settings.encoder, encoder_weights=settings.encoder_weights, in_channels=bands, classes=outputs
        )
    except (KeyError, ValueError) as error:
        raise _no_encoder(str(error).strip("'\"")) from error
    except OSError as error:  # no network, no cache
        raise _no_encoder(f"its weights cannot be had: {str(error).partition(chr(10))[0]}") from error
    return network


def _no_encoder(why: str) -> UsageError:
    return UsageError(
        f"network.encoder cannot be used: {why}",
        code="TR-022",
        title="Encoder cannot be used",
        where="network.encoder",
        fix='pip install "scenemask[encoders]" into an environment of its own (docs/training.md)',
    )
