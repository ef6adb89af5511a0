"""What became of each scene of a batch: append-only records like the ledger's, shared by all processes of the batch.

`OUT_ROOT/.scenemask-batch/` holds the frozen list (`list.json`) and the records; `batch.json` and `failed.csv` are
made from them for people.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import OutputError, PipelineError
from pipeline.run.scene_list import SceneRow
from pipeline.store import (
    LineWriter,
    as_place,
    iter_lines,
    read_object,
    to_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.store import Place

FOLDER = ".scenemask-batch"
LIST = "list.json"
_FORMAT = 1

Status = Literal["done", "empty", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one scene ended."""

    name: str
    status: Status
    """`empty`: done, without a valid pixel."""
    attempt: int = 1
    """The highest one speaks for the scene."""
    seconds: float = 0.0
    """From its first task to its end."""
    pixels: int = 0
    """Of the scene."""
    code: str = ""
    """Of the error."""
    exit_code: int = 0
    """What `segment` would have ended with."""
    what: str = ""
    where: str = ""
    fix: str = ""

    @classmethod
    def of_failure(cls, name: str, error: PipelineError, **more: Any) -> Outcome:
        """The record of a failure."""
        return cls(
            name=name,
            status="failed",
            code=error.code,
            exit_code=error.exit_code,
            what=error.what,
            where=error.where,
            fix=error.fix,
            **more,
        )

    @property
    def transient(self) -> bool:
        """Whether another try may end otherwise without anybody changing anything: resources, storage, cluster."""
        return self.exit_code in {7, 8}


_FIELDS = frozenset(f.name for f in fields(Outcome))


class Outcomes:
    """The records of one batch.

    Args:
        root: The batch's output root.
    """

    def __init__(self, root: Path | Place) -> None:
        self.root = as_place(root)
        self.folder = self.root / FOLDER
        self.folder.make()
        self._writer: LineWriter | None = None
        self.all = self._read()

    def add(self, outcome: Outcome) -> None:
        """Record how a scene ended."""
        if self._writer is None:
            self._writer = LineWriter(self.folder)
        self._writer.write(json.dumps(asdict(outcome), separators=(",", ":")).encode())
        self.all[outcome.name] = outcome

    def close(self) -> None:
        """End writing."""
        if self._writer is not None:
            self._writer.close()

    def refresh(self) -> None:
        """Take in what other processes have recorded."""
        self.all = self._read()

    def _read(self) -> dict[str, Outcome]:
        found: dict[str, Outcome] = {}
        for body in iter_lines(self.folder):
            outcome = None if body is None else _decode(body)
            if outcome is not None and _speaks_over(outcome, found.get(outcome.name)):
                found[outcome.name] = outcome
        return found

    def freeze(self, rows: Sequence[SceneRow], identity: Mapping[str, Any]) -> list[SceneRow]:
        """The batch's list: as it was frozen before, with scenes that are new at its end.

        Args:
            rows: What was given now; empty to continue with the frozen list.
            identity: Model and settings, as plain values.

        Raises:
            OutputError: BA-004, the batch was begun with another model, other settings, or another scene of that name;
            BA-005, the list is there and cannot be read.
        """
        if not self.folder.has(LIST):
            document = {"format": _FORMAT, "identity": dict(identity), "scenes": [asdict(row) for row in rows]}
            self.folder.write_first(LIST, to_bytes(document))  # of two that begin at once, the second compares itself
        before = read_object(self.folder, LIST)
        if before is None:
            raise OutputError(
                "the batch's list of scenes cannot be read",
                code="BA-005",
                title="Batch cannot be continued",
                where=str(self.folder / LIST),
                fix="try again if the disk was away for a moment; else choose another -o",
            )
        known = [SceneRow(**row) for row in before["scenes"]]  # type: ignore[attr-defined]
        _refuse_changes(self.root, before, known, rows, identity)
        names = {row.name for row in known}
        merged = known + [row for row in rows if row.name not in names]
        if len(merged) != len(known):
            document = {"format": _FORMAT, "identity": dict(identity), "scenes": [asdict(row) for row in merged]}
            self.folder.write(LIST, to_bytes(document))
        return merged

    def write_summary(self, rows: Sequence[SceneRow], facts: Mapping[str, Any]) -> None:
        """`batch.json` and, where scenes failed, `failed.csv`; both are replaced whole."""
        self.refresh()
        scenes: list[dict[str, Any]] = []
        for row in rows:
            outcome = self.all.get(row.name)
            told = (
                {}
                if outcome is None
                else {k: v for k, v in asdict(outcome).items() if v not in ("", 0) and k != "name"}
            )
            scenes.append({**asdict(row), "status": "left", **told})
        counts = {
            status: sum(scene["status"] == status for scene in scenes) for status in ("done", "empty", "failed", "left")
        }
        written = datetime.now(UTC).isoformat(timespec="seconds")
        document = {**facts, "written": written, "counts": counts, "scenes": scenes}
        self.root.write("batch.json", to_bytes(document))
        failed = [(row, self.all[row.name]) for row in rows if self._failed(row)]
        if failed:
            self.root.write("failed.csv", _as_csv(failed))
        else:
            self.root.delete("failed.csv")

    def _failed(self, row: SceneRow) -> bool:
        return row.name in self.all and self.all[row.name].status == "failed"


def _speaks_over(one: Outcome, other: Outcome | None) -> bool:
    """Whether a record counts more than another of its scene: a later attempt, or a success of the same."""
    if other is None or one.attempt != other.attempt:
        return other is None or one.attempt > other.attempt
    return other.status == "failed"


def _decode(body: bytes) -> Outcome | None:
    """One record; None for what no version of ours writes."""
    try:
        told = json.loads(body)
        return Outcome(**{key: value for key, value in told.items() if key in _FIELDS})
    except (ValueError, TypeError, AttributeError):
        return None


def _refuse_changes(
    root: Place,
    before: Mapping[str, Any],
    known: Sequence[SceneRow],
    rows: Sequence[SceneRow],
    identity: Mapping[str, Any],
) -> None:
    was = {row.name: row.scene for row in known}
    lines = [f"scene {r.name}: was {was[r.name]}, is {r.scene}" for r in rows if was.get(r.name, r.scene) != r.scene]
    old: Mapping[str, Any] = before.get("identity", {})
    differing = [key for key in sorted(old.keys() | identity.keys()) if old.get(key) != identity.get(key)]
    lines += [f"{key}: was {old.get(key)!r}, is {identity.get(key)!r}" for key in differing]
    if lines:
        shown = "".join(f"\n         {line}" for line in lines[:10])
        more = f"\n         and {len(lines) - 10} more" if len(lines) > 10 else ""  # noqa: PLR2004 - as many as a person reads
        raise OutputError(
            f"the batch was begun with something else:{shown}{more}",
            code="BA-004",
            title="Batch does not match the output",
            where=str(root),
            fix="choose another -o, or restore the former model, settings or list",
        )


def _as_csv(failed: Sequence[tuple[SceneRow, Outcome]]) -> bytes:
    """Rows that can be given to `--list` again; cells that a spreadsheet would run are quoted."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "scene", "code", "exit_code", "what", "where", "fix"])
    for row, o in failed:
        writer.writerow([row.name, row.scene, o.code, o.exit_code, *map(_harmless, (o.what, o.where, o.fix))])
    return text.getvalue().encode()


def _harmless(cell: str) -> str:
    flat = " ".join(cell.split())
    return f"'{flat}" if flat.startswith(("=", "+", "-", "@")) else flat
