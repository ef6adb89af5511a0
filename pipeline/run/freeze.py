"""What a batch is begun with, fixed before any work: list, model, settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.bucket import Bucket, require_obstore
from pipeline.errors import UsageError
from pipeline.location import is_remote, parse_location
from pipeline.model import Model, load_model
from pipeline.run.outcomes import FOLDER, LIST, Outcomes
from pipeline.run.resolve import bare_options
from pipeline.run.scene_list import SceneRow, collect
from pipeline.run.settings import COSMETIC, SegmentSettings, access_of
from pipeline.store import Folder, Prefix, create_output_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.location import Location
    from pipeline.store import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """A batch that can be begun or continued."""

    root: Path | Location
    model: Model
    rows: list[SceneRow]
    """All scenes of the batch, in order."""
    asked: list[SceneRow]
    """Those that were asked for now."""
    outcomes: Outcomes


def freeze_batch(
    scenes: Sequence[str | Path],
    model: Model | str | Path,
    out_root: str | Path | Location,
    *,
    settings: SegmentSettings,
    lists: Sequence[Path] = (),
    asset: str | None = None,
) -> Frozen:
    """Write down what a batch consists of, or compare it with what was written.

    Scenes that are new are added; those that are missing now stay in the list and are left alone. Without scenes and
    lists, the frozen list is continued.

    Raises:
        UsageError: The list cannot be used; see `scene_list.collect`. CF-002, the folder cannot be written.
        OutputError: BA-004, the batch was begun with something else.
    """
    root, place = _root(out_root, settings)
    begun = (place / FOLDER).has(LIST)
    given = collect(scenes, lists, asset=asset) if scenes or lists or not begun else []
    _refuse_signatures(given)
    if not isinstance(model, Model):
        model = load_model(model, bare=bare_options(settings), trust_model=settings.trust_model)
    if isinstance(root, Path):
        create_output_folder(root).rmdir()  # proves that it can be written; scenes have their own
    outcomes = Outcomes(place)
    rows = outcomes.freeze(given, _identity(model, settings))
    names = {row.name for row in given}
    return Frozen(
        root=root,
        model=model,
        rows=rows,
        asked=[row for row in rows if not names or row.name in names],
        outcomes=outcomes,
    )


def _root(out_root: str | Path | Location, settings: SegmentSettings) -> tuple[Path | Location, Place]:
    """What `-o` means, for people and for us."""
    if not is_remote(out_root):
        path = Path(os.fspath(out_root)).absolute()  # type: ignore[arg-type]
        return path, Folder(path)
    require_obstore()
    location = parse_location(out_root, schemes=("s3",))
    return location, Prefix.at(location, Bucket(location.host, access_of(settings)))


def _refuse_signatures(rows: Sequence[SceneRow]) -> None:
    """The list is written down, and signatures are not to be."""
    signed = [row.scene for row in rows if is_remote(row.scene) and parse_location(row.scene).query]
    if signed:
        raise UsageError(
            f"{len(signed)} scenes have a query in their address, such as {signed[0]}; it may be a signature, and the "
            "list of a batch is kept in files",
            code="CF-056",
            title="Signed addresses in a batch",
            fix="give s3:// addresses, with AWS_PROFILE or other keys, or segment these scenes one by one",
        )


def _identity(model: Model, settings: SegmentSettings) -> dict[str, Any]:
    """Plain values that decide every scene's output."""
    told = settings.model_dump(mode="json")
    return {"model": model.digest, **{f"setting {name}": told[name] for name in sorted(told.keys() - COSMETIC)}}
