"""The output folder: whose it is, and how results enter it all at once, `run.json` last, as the commit."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import OutputError, PipelineError, UsageError, visible
from pipeline.sidefiles import remove_side_files
from pipeline.store.digest import sha256_file
from pipeline.store.files import (
    atomic_write_json,
    cannot_write,
    disk_full_as_error,
    fsync_path,
    private_folder,
    read_json,
    remove_temporaries,
)
from pipeline.store.sealed import sealed, unsealed
from pipeline.syncpoint import reached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pipeline.location import Location

RUN_FILE = "run.json"
SCRATCH_FOLDER = ".scenemask"
PLAN_FILE = "plan.json"
BEGUN_FILE = "commit-begun.json"
_RESULTS = frozenset(
    {"mask.tif", "mask.tif.aux.xml", "mask.qml", "probabilities.tif", "preview.png", "item.json", RUN_FILE}
)
_POLYGONS = frozenset({".geojson", ".gpkg", ".fgb", ".parquet"})

RESULT_NAMES = (*sorted(_RESULTS), *sorted(f"polygons{ending}" for ending in _POLYGONS))
"""All names that results may have."""

OutputKind = Literal["absent", "empty", "complete", "unfinished", "foreign"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputState:
    """What an output folder holds."""

    kind: OutputKind
    """`empty`: nothing that we would write; other people's files do not count. `complete`: a run ended here.
    `unfinished`: a run of ours began and left its plan. `foreign`: results without the record of a run."""
    run: dict[str, object] | None
    """Parsed `run.json`."""
    plan: dict[str, object] | None
    """Parsed `.scenemask/plan.json`. Beside a `run` it means that an overwriting run was cut off."""
    names: tuple[str, ...]
    """Files in the folder that carry names of our results, sorted."""
    changed: tuple[str, ...] = ()
    """Records that are there and do not match their checksum; they count as absent."""


def is_result_name(name: str) -> bool:
    """Whether a run may write a file of this name into its output folder."""
    stem, dot, extension = name.partition(".")
    return name in _RESULTS or (stem == "polygons" and dot + extension in _POLYGONS)


def inspect_output(out_dir: Path) -> OutputState:
    """Look, without touching anything.

    Raises:
        UsageError: CF-002, `out_dir` is no folder or cannot be read.
    """
    try:
        names = tuple(sorted(p.name for p in out_dir.iterdir() if is_result_name(p.name)))
    except FileNotFoundError as error:
        if out_dir.is_symlink():
            raise cannot_write(out_dir, "it is a link that leads nowhere") from error
        return OutputState(kind="absent", run=None, plan=None, names=())
    except OSError as error:
        raise cannot_write(out_dir, error.strerror or str(error)) from error
    plan = read_json(out_dir / SCRATCH_FOLDER / PLAN_FILE)  # first: where it has gone, run.json has come
    return state_of(read_json(out_dir / RUN_FILE), plan, lambda: names)


def state_of(
    run: dict[str, object] | None, plan: dict[str, object] | None, find_names: Callable[[], tuple[str, ...]]
) -> OutputState:
    """What records say; those that somebody has changed say nothing.

    Args:
        run: Parsed `run.json`.
        plan: Parsed `plan.json`.
        find_names: Finds results; asked where no record tells.
    """
    found = ((RUN_FILE, run), (PLAN_FILE, plan))
    changed = [name for name, told in found if told is not None and unsealed(told) is None]
    run, plan = (unsealed(told) for _, told in found)
    names = find_names()
    kind: OutputKind = "foreign" if names else "empty"
    if run is not None:
        kind = "complete"
    elif plan is not None:
        kind = "unfinished"
    return OutputState(kind=kind, run=run, plan=plan, names=names, changed=tuple(changed))


def refuse_changed(where: object, state: OutputState) -> None:
    """Refuse an output whose records were changed.

    Raises:
        OutputError: OU-017.
    """
    if state.changed:
        which = " and of ".join(state.changed)
        raise OutputError(
            f"the checksum of {which} does not match: it was changed since, or is of another version",
            code="OU-017",
            title="Record of a run was changed",
            where=str(where),
            fix="restore the file; or begin anew with another -o, or with --overwrite",
        )


def foreign_output(out_dir: Path | Location, state: OutputState) -> OutputError:
    """The OU-001 error for a folder with results that no finished or unfinished run of ours accounts for."""
    torn = RUN_FILE in state.names
    reason = "a run.json that cannot be read" if torn else "no run.json, so nothing tells whether they are whole"
    return OutputError(
        f"the output folder already holds {', '.join(state.names)}, but {reason}",
        code="OU-001",
        title="Output folder holds results of something else",
        where=str(out_dir),
        fix="choose another folder with -o, or replace these files with --overwrite",
    )


def refuse_own_input(out_dir: Path, kind: str, given: Path) -> None:
    """A run must not replace what it reads, nor read what it removes.

    Args:
        out_dir: The output folder; need not exist.
        kind: The word for what is read: scene, model, area of interest, mask layer.
        given: Where it lies.

    Raises:
        UsageError: CF-008, it is a file that a run writes into `out_dir`, or lies in its scratch folder; or it
            is a scene and a folder with `out_dir` in it, whose results would be part of the scene.
    """
    out = Path(os.path.realpath(out_dir))
    for path in (given.absolute(), Path(os.path.realpath(given))):
        home = Path(os.path.realpath(path.parent))
        within = kind == "scene" and path.is_dir() and out.is_relative_to(home / path.name)
        lies_there = home == out and is_result_name(path.name)
        if lies_there or within or (home / path.name).is_relative_to(out / SCRATCH_FOLDER):
            raise UsageError(
                f"the {kind} is {given}, which this run would replace or remove; expected one outside its results",
                code="CF-008",
                title="Input lies among the results",
                where=str(given),
                fix="choose another output folder with -o, or move the file first",
            )


def create_output_folder(out_dir: Path) -> Path:
    """Make `out_dir` if needed and its private scratch folder; prove that both can be written.

    Returns:
        The scratch folder, `out_dir/.scenemask`, mode 0700.

    Raises:
        UsageError: CF-002, something cannot be made or written.
        ResourceError: RS-001, no space.
    """
    scratch = out_dir / SCRATCH_FOLDER
    if visible(str(out_dir)) != str(out_dir):
        raise cannot_write(out_dir, "its path holds control characters, which drivers of polygon formats refuse")
    try:
        with disk_full_as_error(out_dir):
            out_dir.mkdir(parents=True, exist_ok=True)
            # Permission bits do not tell for a superuser or a read-only mount: only writing does.
            with tempfile.TemporaryFile(dir=out_dir):
                pass
            return private_folder(scratch)
    except PipelineError:
        raise
    except (OSError, ValueError) as error:
        raise cannot_write(out_dir, getattr(error, "strerror", None) or str(error)) from error


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, object]]:
    """Name -> size and SHA-256, as `run.json` keeps them."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in sorted(names)
    }


def changed_files(out_dir: Path, files: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Names of the described files that are gone or no longer the same."""
    return [name for name, told in files.items() if not _is_same(out_dir / name, told)]


class Staging:
    """Results being made, in `.scenemask/stage/`, unseen until `commit`.

    Args:
        out_dir: The output folder; `create_output_folder` has been called on it.
        apart: Names a folder that nobody else stages in, for who may be one of two that do not know of each other.
    """

    def __init__(self, out_dir: Path, *, apart: str = "") -> None:
        self.out_dir = out_dir
        self.folder = private_folder(out_dir / SCRATCH_FOLDER / f"stage{apart}")
        self.begun = out_dir / SCRATCH_FOLDER / BEGUN_FILE

    def path(self, name: str) -> Path:
        """Where to make the result called `name`."""
        assert is_result_name(name), f"{name} is no name of a result"
        return self.folder / name

    def clear(self) -> None:
        """Forget everything staged, leftovers of a killed run included; what a killed commit has to remove is kept."""
        shutil.rmtree(self.folder, ignore_errors=True)
        private_folder(self.folder)

    def commit(self, names: Sequence[str], run: Mapping[str, object]) -> None:
        """Replace the output folder's results by the staged ones.

        The old `run.json` goes first and the new one comes last, so that at no moment a `run.json` stands beside
        results that it does not describe. Results of an older run that the new one did not make are removed, if the
        older `run.json` describes them under `files`. Killed half-way, calling it again finishes the work, be it with
        the same files, with files staged anew, or with others.

        Args:
            names: Staged results to move, `run.json` not among them; those moved already are skipped.
            run: Content of `run.json`.

        Raises:
            FileNotFoundError: A result was not staged; nothing has been touched.
            ResourceError: RS-001, no space.
        """
        assert RUN_FILE not in names
        before = read_json(self.begun)
        for name in names:
            moved = before is not None and not (self.folder / name).exists() and (self.out_dir / name).exists()
            if not moved:
                fsync_path(self.folder / name)
        replaced = described_files(before or {}) | described_files(read_json(self.out_dir / RUN_FILE) or {})
        atomic_write_json(self.begun, {"files": dict.fromkeys(sorted({*replaced, *names}))})
        reached("before-remove")
        (self.out_dir / RUN_FILE).unlink(missing_ok=True)
        reached("after-remove")
        fsync_path(self.out_dir)
        for name in replaced - set(names):
            remove_side_files(self.out_dir / name)
            (self.out_dir / name).unlink(missing_ok=True)
            reached("after-remove")
        with disk_full_as_error(self.out_dir):
            for name in names:
                if (self.folder / name).exists():  # else moved before the run was killed
                    remove_side_files(self.out_dir / name)
                    reached("before-rename")
                    (self.folder / name).replace(self.out_dir / name)
                    reached("after-rename")
        fsync_path(self.out_dir)
        remove_temporaries(self.out_dir, RUN_FILE)
        atomic_write_json(self.out_dir / RUN_FILE, sealed(run))
        reached("before-remove")
        self.begun.unlink()
        reached("after-remove")


def described_files(run: Mapping[str, object]) -> set[str]:
    """Names of results that a `run.json` tells of."""
    files = run.get("files")
    return {name for name in files if is_result_name(name)} if isinstance(files, dict) else set()


def _is_same(path: Path, told: Mapping[str, object]) -> bool:
    try:
        return path.stat().st_size == told.get("bytes") and sha256_file(path) == told.get("sha256")
    except OSError:
        return False
