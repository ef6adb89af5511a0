"""`scenemask verify`: everything that `run.json` describes is read back and compared. Changes nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from rasterio.errors import RasterioError

from pipeline.access import Access
from pipeline.errors import OutputError
from pipeline.run.fetch import workplace
from pipeline.run.output import FolderOutput, output_at
from pipeline.store import changed_files, damaged_blocks, foreign_output
from pipeline.store.runfile import described_files, refuse_changed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.grid import Window
    from pipeline.location import Location
    from pipeline.run.output import Output

_BLOCKS = "blocks"
"""Key of run.json."""
_NAMED = 5
"""Windows that a message lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found."""

    files: dict[str, Literal["whole", "changed", "missing"]]
    """Every file that run.json describes."""
    blocks: dict[str, int]
    """Raster -> blocks that were read; a run of an older version has recorded none."""
    damaged: dict[str, tuple[Window, ...]]
    """Raster -> its blocks with other pixels, or none that can be read."""

    @property
    def whole(self) -> bool:
        """Whether all is as it was written."""
        return not self.damaged and set(self.files.values()) <= {"whole"}

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        damaged = {name: [asdict(window) for window in windows] for name, windows in self.damaged.items()}
        return {"whole": self.whole, "files": self.files, "blocks": self.blocks, "damaged": damaged}

    def error(self, out_dir: str | Path) -> OutputError:
        """The OU-016 error that says what is wrong."""
        lines = [f"{name} is {state}{self._where(name)}" for name, state in self.files.items() if state != "whole"]
        lines += [_in_words(name, self.blocks[name], windows) for name, windows in self.damaged.items()]
        return OutputError(
            "these results are no longer what the run wrote:" + "".join(f"\n         {line}" for line in lines),
            code="OU-016",
            title="Results are damaged",
            where=str(out_dir),
            fix="restore the files from a copy, or segment again with --overwrite; if it repeats, check the disk",
        )

    def _where(self, name: str) -> str:
        """That a raster's pixels are whole, if they are."""
        return (
            ", but none of its blocks: overviews or tags" if self.blocks.get(name) and name not in self.damaged else ""
        )


def audit(out_dir: str | Path | Location, *, access: Access | None = None) -> Audit:
    """Compare files with their hashes, and rasters block by block with the hashes of the tiles.

    Args:
        out_dir: Output folder of a finished run, or `s3://bucket/prefix`, whose results are fetched first.
        access: How a bucket is reached.

    Raises:
        OutputError: OU-015, no run has ended there; OU-001, results without the record of a run; OU-017, a record that
            was changed.
        UsageError: CF-002, the folder cannot be read.
        InfrastructureError: ST-010 to ST-013.
    """
    access = access or Access()
    output = output_at(out_dir, access)
    try:
        run = _record_of(output)
    finally:
        output.tidy()
    with workplace(access) as work:
        folder = output.folder if isinstance(output, FolderOutput) else work.folder()
        if folder != output.folder:
            for name in described_files(run):
                work.fetch(output.place / name, folder / name)
        return _audit(folder, run["files"], run.get(_BLOCKS) or {"tile_hw": (0, 0), "rows": {}})


def _record_of(output: Output) -> Mapping[str, Any]:
    """`run.json` of a finished run."""
    out_dir, state = output.place, output.look()
    refuse_changed(out_dir, state)
    if state.kind == "foreign":
        raise foreign_output(out_dir, state)
    if state.run is None:
        raise OutputError(
            "no run has ended here, so there is nothing to verify"
            + ("; one was begun and can be continued" if state.kind == "unfinished" else ""),
            code="OU-015",
            title="No finished run",
            where=str(out_dir),
            fix="see `scenemask status`, and finish the run with the command that began it",
        )
    record: Mapping[str, Any] = state.run
    if not isinstance(record.get("files"), dict):
        raise foreign_output(out_dir, state)
    return record


def _audit(out_dir: Path, described: Mapping[str, Any], blocks: Mapping[str, Any]) -> Audit:
    changed = set(changed_files(out_dir, described))
    files: dict[str, Literal["whole", "changed", "missing"]] = {
        name: ("changed" if (out_dir / name).exists() else "missing") if name in changed else "whole"
        for name in described
    }
    present = {name: rows for name, rows in blocks["rows"].items() if files.get(name) in {"whole", "changed"}}
    checked = {name: _damaged(out_dir / name, rows, tuple(blocks["tile_hw"])) for name, rows in present.items()}
    found = {name: windows for name, windows in checked.items() if windows is not None}
    return Audit(
        files=files,
        blocks={name: sum(len(row.split()) for row in present[name]) for name in found},
        damaged={name: windows for name, windows in found.items() if windows},
    )


def _damaged(path: Path, rows: list[str], tile_hw: tuple[int, int]) -> tuple[Window, ...] | None:
    """None where not even the head of the file can be read; it is told as changed then."""
    try:
        return tuple(damaged_blocks(path, rows, tile_hw=tile_hw))
    except RasterioError:
        return None


def _in_words(name: str, total: int, windows: tuple[Window, ...]) -> str:
    more = f" and {len(windows) - _NAMED} more" if len(windows) > _NAMED else ""
    return f"{name}: {len(windows)} of {total} blocks differ: {'; '.join(map(str, windows[:_NAMED]))}{more}"
