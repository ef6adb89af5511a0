"""`model.json`: a STAC item with the Machine Learning Model extension, 1.4.

Source: https://github.com/stac-extensions/mlm. Our own fields start with `scenemask:`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pystac import Asset
    from pystac.extensions.mlm import ModelInput, ModelOutput

    from pipeline.model.foreign import NetworkIO
    from pipeline.model.spec import ModelSpec
    from pipeline.model.unet import UNet

WEIGHTS_FILE = "weights.safetensors"


def model_item(network: UNet, spec: ModelSpec, weights_sha256: str, training: dict[str, Any]) -> dict[str, Any]:
    """The STAC item of a U-Net.

    Args:
        network: The network, for its shape and number of parameters.
        spec: What it expects and gives.
        weights_sha256: Digest of the weights file, hex.
        training: Record of how it was trained; its licence, description and settings become the card's own fields.
    """
    # Imported here: reading a model does not need pystac.
    import pystac  # noqa: PLC0415
    from pystac.extensions import mlm  # noqa: PLC0415

    now = datetime.now(UTC)
    item = pystac.Item(
        id=spec.name, geometry=None, bbox=None, datetime=None, properties={}, start_datetime=now, end_datetime=now
    )
    item.properties.update(
        {
            "scenemask:model": spec.model_dump(mode="json"),
            "scenemask:unet": network.config.model_dump(mode="json"),
            "scenemask:weights_sha256": weights_sha256,
            "scenemask:training": training,
        }
    )
    mlm.MLMExtension.ext(item, add_if_missing=True).apply(
        name=spec.name,
        architecture="U-Net",
        tasks=[mlm.TaskType.SEMANTIC_SEGMENTATION],
        framework="pytorch",
        total_parameters=sum(p.numel() for p in network.parameters()),
        input=[_input(network.config.bands, 2**network.config.depth * 32, spec)],
        output=[_output(network.config.outputs, 2**network.config.depth * 32, spec)],
    )
    item.properties.update(_described(spec, training))
    asset = pystac.Asset(
        href=f"./{WEIGHTS_FILE}",
        media_type="application/octet-stream; application=safetensors",
        roles=["mlm:model", "mlm:weights"],
        extra_fields={"mlm:artifact_type": "safetensors.torch.save_file"},
    )
    item.add_asset("weights", asset)
    _add_checksum(asset, weights_sha256)
    document: dict[str, Any] = item.to_dict(include_self_link=False)
    # The specification has a list here, one object per band; the library takes a single object only.
    document["properties"]["mlm:input"][0]["value_scaling"] = [
        {"type": "z-score", "mean": mean, "stddev": std}
        for mean, std in zip(spec.scaling.mean, spec.scaling.std, strict=True)
    ]
    return document


def _described(spec: ModelSpec, training: dict[str, Any]) -> dict[str, Any]:
    """STAC's common fields, and MLM's about training, where they are known."""
    settings = training.get("settings", {})
    known = {
        "gsd": spec.gsd_m,
        "license": training.get("licence"),
        "description": training.get("description"),
        "mlm:pretrained": bool(training),
        "mlm:pretrained_source": training.get("data", {}).get("provenance"),
        "mlm:batch_size_suggestion": settings.get("chips", {}).get("batch"),
        "mlm:hyperparameters": {
            key: settings[key] for key in ("network", "loss", "schedule", "augment") if key in settings
        },
    }
    return {key: value for key, value in known.items() if value}


def _add_checksum(asset: Asset, sha256: str) -> None:
    """The file extension's checksum: a multihash, whose first two bytes say SHA-256 and 32 bytes."""
    from pystac.extensions.file import FileExtension  # noqa: PLC0415

    FileExtension.ext(asset, add_if_missing=True).checksum = f"1220{sha256}"


_ARTIFACTS = {"onnx": "onnx", "torchscript": "torch.jit.save", "pt2": "torch.export.save"}


def foreign_item(io_spec: NetworkIO, spec: ModelSpec, weights_sha256: str, training: dict[str, Any]) -> dict[str, Any]:
    """The STAC item of a network that others trained.

    Args:
        io_spec: The file and how it is used.
        spec: What it expects and gives.
        weights_sha256: Digest of the file, hex.
        training: As in `model_item`; empty where nobody knows.
    """
    import pystac  # noqa: PLC0415
    from pystac.extensions import mlm  # noqa: PLC0415

    now = datetime.now(UTC)
    item = pystac.Item(
        id=spec.name, geometry=None, bbox=None, datetime=None, properties={}, start_datetime=now, end_datetime=now
    )
    item.properties.update(
        {
            "scenemask:model": spec.model_dump(mode="json"),
            "scenemask:network": io_spec.model_dump(mode="json"),
            "scenemask:weights_sha256": weights_sha256,
            **({"scenemask:training": training} if training else {}),
        }
    )
    item.properties.update(_described(spec, training))
    mlm.MLMExtension.ext(item, add_if_missing=True).apply(
        name=spec.name,
        architecture="unknown",
        tasks=[mlm.TaskType.SEMANTIC_SEGMENTATION],
        framework="ONNX" if io_spec.format == "onnx" else "pytorch",
        input=[_input(len(spec.bands), _EXAMPLE_SIDE, spec)],
        output=[_output(spec.num_outputs, _EXAMPLE_SIDE, spec)],
    )
    asset = pystac.Asset(
        href=f"./{io_spec.file}",
        media_type="application/octet-stream",
        roles=["mlm:model"],
        extra_fields={"mlm:artifact_type": _ARTIFACTS[io_spec.format]},
    )
    item.add_asset("weights", asset)
    _add_checksum(asset, weights_sha256)
    document: dict[str, Any] = item.to_dict(include_self_link=False)
    return document


_EXAMPLE_SIDE = 512


def _input(channels: int, side: int, spec: ModelSpec) -> ModelInput:
    from pystac.extensions import mlm  # noqa: PLC0415

    shape, order = [-1, channels, side, side], ["batch", "bands", "height", "width"]
    structure = mlm.InputStructure.create(shape=shape, dim_order=order, data_type="float32")
    return mlm.ModelInput.create(name="scene patch", bands=list(spec.bands), input=structure)


def _output(channels: int, side: int, spec: ModelSpec) -> ModelOutput:
    from pystac.extensions import classification, mlm  # noqa: PLC0415

    shape, order = [-1, channels, side, side], ["batch", "class", "height", "width"]
    classes = [
        classification.Classification.create(
            value=c.value, name=_slug(c.name), title=c.name, color_hint="{:02X}{:02X}{:02X}".format(*c.color)
        )
        for c in spec.legend()
    ]
    return mlm.ModelOutput.create(
        name="logits",
        tasks=[mlm.TaskType.SEMANTIC_SEGMENTATION],
        result=mlm.ResultStructure.create(shape=shape, dim_order=order, data_type="float32"),
        classes=classes,
    )


def _slug(name: str) -> str:
    return "".join(ch if ch.isalnum() or ch in "-_" else "_" for ch in name)
