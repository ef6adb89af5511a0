"""What makes a run this run: compared when the same command is given again, so that nothing is mixed up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipeline.errors import OutputError
from pipeline.run.settings import COSMETIC, SegmentSettings

if TYPE_CHECKING:
    from pipeline.model import Model
    from pipeline.scene import Limits, Scene


def identity(scene: Scene, model: Model, settings: SegmentSettings, *, limits: Limits) -> dict[str, Any]:
    """Plain values that decide the output: scene, model and settings. Goes into plan.json and run.json."""
    by_content = limits.identity()
    return {
        "scene": scene.fingerprint(),
        "model": {"name": model.spec.name, "digest": model.digest},
        "settings": {
            name: value
            for name, value in settings.model_dump(mode="json").items()
            if name not in COSMETIC and name not in by_content
        }
        | by_content,
    }


def adopt_settings(given: SegmentSettings, recorded: dict[str, Any]) -> SegmentSettings:
    """The settings of the run that is there, under those given explicitly.

    Cosmetic ones are never adopted, but for `verify`: who asked for it once wants it of the whole run.

    Args:
        given: Made from what was given alone, so that `model_fields_set` tells it.
        recorded: Settings in plan.json or run.json; may be empty.

    Returns:
        `given` where the two make no valid settings together: a given one then differs from the record, and is refused.
    """
    explicit = {name: getattr(given, name) for name in given.model_fields_set}
    adopted = {name: value for name, value in recorded.items() if name not in COSMETIC or name == "verify"}
    try:
        return type(given).model_validate({**adopted, **explicit})
    except ValidationError:
        return given


def refuse_differences(before: dict[str, Any], now: dict[str, Any], *, explicit: set[str], where: object) -> None:
    """Compare a run with the one that is already there.

    Args:
        before: Its identity.
        now: Ours.
        explicit: Settings that were given; the others are adopted from `before`.
        where: Output folder.

    Raises:
        OutputError: OU-011 with a line per difference.
    """
    lines = _differences("scene", before["scene"], now["scene"]) + _differences("model", before["model"], now["model"])
    old, new = before["settings"], now["settings"]
    asked = {name: new[name] for name in explicit if name in new}
    # Their paths may have been adopted; what lies there now is another matter.
    asked |= {name: new.get(name) for name in ("aoi", "mask_layer")}
    lines += _differences("setting", {name: old.get(name) for name in asked}, asked)
    if lines:
        raise OutputError(
            "the output was begun with something else:" + "".join(f"\n         {line}" for line in lines),
            code="OU-011",
            title="Run does not match the output",
            where=str(where),
            fix="choose another -o, restore the former scene, model or settings, or add --overwrite",
        )


def _differences(kind: str, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{kind} {key}: was {_short(before.get(key))}, is {_short(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:28]}…{text[-28:]}"  # noqa: PLR2004
