"""Which scenes a batch has, and what their output folders are called: from arguments, globs, lists and STAC items."""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError, UsageError, require_utf8

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_MOST_NAME_BYTES = 120
_SCENE_COLUMNS = ("scene", "path", "href", "url", "location", "filename")
_RASTER_TYPES = ("image/tiff", "image/jp2", "image/vnd.stac.geotiff")
_RASTER_SUFFIXES = (".tif", ".tiff", ".jp2")
_RESERVED = frozenset({"con", "prn", "aux", "nul"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneRow:
    """One scene of a batch."""

    name: str
    """Of its output folder."""
    scene: str
    """Absolute path or URI."""


def collect(scenes: Sequence[str | Path], lists: Sequence[Path], *, asset: str | None = None) -> list[SceneRow]:
    """All scenes in the order given, with names for their folders.

    Args:
        scenes: Paths and URIs; patterns with `*`, `?` or `[` that name no file themselves are expanded.
        lists: `.txt` (a scene per line, `#` for comments), `.csv` and `.parquet` (a column `scene`, `path` or `href`,
            and `name` if wanted), `.json` and `.geojson` (STAC ItemCollection).
        asset: Key of the items' asset to take, where they have several rasters.

    Raises:
        UsageError: BA-001, a list cannot be read; BA-002, no scene is left; BA-003, scenes or folders are named twice.
    """
    found: list[tuple[str | None, str]] = [(None, path) for given in scenes for path in _expanded(str(given))]
    for path in lists:
        found += list(_read_list(path, asset))
    if not found:
        raise UsageError(
            "no scene was given, expected at least one",
            code="BA-002",
            title="Batch without scenes",
            fix="give paths, a quoted pattern such as 'scenes/*.tif', or --list FILE",
        )
    rows = [SceneRow(name=slug(name or _stem(scene)), scene=scene) for name, scene in found]
    require_utf8(scene for _, scene in found)
    _refuse_duplicates(rows)
    return rows


def slug(name: str) -> str:
    """A name that is safe as a folder's on any file system: `[A-Za-z0-9._-]`, at most 120 bytes.

    What had to be changed gets a digest of the original, so that two names never become one.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    if plain and plain == name and len(plain) <= _MOST_NAME_BYTES and plain.partition(".")[0].lower() not in _RESERVED:
        return plain
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{plain[: _MOST_NAME_BYTES - 9]}-{digest}".lstrip("-")


def _stem(scene: str) -> str:
    """Name of a scene's file without folders, query and suffix."""
    last = re.split(r"[?#]", scene, maxsplit=1)[0] if "://" in scene else scene
    last = last.replace("\\", "/").rstrip("/").rpartition("/")[2]
    stem = last.rpartition(".")[0] if last.lower().endswith(_RASTER_SUFFIXES) else last
    return stem or last or "scene"


def _expanded(given: str, home: Path | None = None) -> list[str]:
    """A scene, or those that a pattern names, as absolute paths."""
    if "://" in given:
        return [given]
    path = Path(os.path.expanduser(given))  # noqa: PTH111 - an unknown `~user` stays text
    if home is not None and not path.is_absolute() and not _exists(path) and _exists(home / path):
        path = home / path
    if glob.has_magic(given) and not _exists(path):
        found = sorted(glob.glob(str(path), recursive=True)) if "\0" not in given else []  # noqa: PTH207 - patterns with folders
        if not found:
            raise UsageError(
                f"the pattern {given!r} names no file",
                code="BA-002",
                title="Batch without scenes",
                fix="correct it; relative patterns begin in the current folder",
            )
        return [os.path.abspath(match) for match in found]  # noqa: PTH100 - a link stays one
    return [os.path.abspath(path)]  # noqa: PTH100 - a link stays one


def _exists(path: Path) -> bool:
    """False for what can be no name, such as one that is too long."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises there


def _read_list(path: Path, asset: str | None) -> Iterator[tuple[str | None, str]]:
    """(name or None, scene) of each row."""
    readers: dict[str, Any] = {
        ".txt": _lines,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
        ".json": lambda file: _items(file, asset),
        ".geojson": lambda file: _items(file, asset),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise _unreadable(path, f"its suffix is {path.suffix or 'missing'}", "use .txt, .csv, .parquet or .json (STAC)")
    try:
        rows = list(reader(path))
    except PipelineError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _unreadable(path, reason, "check the path and its contents") from error
    for name, scene in rows:
        yield from ((name, one) for one in _expanded(scene, path.absolute().parent))


def _lines(path: Path) -> Iterator[tuple[str | None, str]]:
    for line in path.read_text("utf-8-sig").splitlines():
        scene = line.strip()
        if scene and not scene.startswith("#"):
            yield None, scene


def _csv_rows(path: Path) -> Iterator[tuple[str | None, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        column = _column(path, reader.fieldnames or ())
        for number, row in enumerate(reader, 2):
            scene = (row.get(column) or "").strip()
            if not scene:
                msg = f"line {number} has no {column}"
                raise ValueError(msg)
            yield (row.get("name") or "").strip() or None, scene


def _parquet_rows(path: Path) -> Iterator[tuple[str | None, str]]:
    import pyarrow.parquet as pq  # noqa: PLC0415 - only such lists need it

    names = pq.read_schema(path).names
    column = _column(path, names)
    table = pq.read_table(path, columns=[column, "name"] if "name" in names else [column]).to_pydict()
    for number, scene in enumerate(table[column]):
        if not scene:
            msg = f"row {number} has no {column}"
            raise ValueError(msg)
        name = table["name"][number] if "name" in table else None
        yield str(name) if name else None, str(scene)


def _column(path: Path, names: Iterable[str]) -> str:
    names = list(names)
    for column in _SCENE_COLUMNS:
        if column in names:
            return column
    raise _unreadable(
        path,
        f"it has the columns {', '.join(names) or 'none'}",
        "call the column of the scenes `scene`, `path` or `href`",
    )


def _items(path: Path, asset: str | None) -> Iterator[tuple[str | None, str]]:
    document = json.loads(path.read_text("utf-8"))
    features = document.get("features") if isinstance(document, dict) else None
    if not isinstance(features, list):
        msg = "it is no STAC ItemCollection (a FeatureCollection of items)"
        raise ValueError(msg)  # noqa: TRY004 - told as one kind of unreadable list
    for item in features:
        href = _asset_href(path, item, asset)
        yield str(item.get("id", "")) or None, _against(path, href)


def _asset_href(path: Path, item: dict[str, Any], asset: str | None) -> str:
    """Of the asset asked for, or of the only raster; of several, of the item itself, whose bands are found by name."""
    assets: dict[str, dict[str, Any]] = item.get("assets") or {}
    if asset is not None:
        if asset in assets:
            return str(assets[asset]["href"])
        raise _unreadable(
            path,
            f"item {item.get('id')} has the assets {', '.join(assets)}",
            f"choose one of them instead of {asset!r}",
        )
    rasters = {key: one for key, one in assets.items() if _is_raster(one)}
    data = {key: one for key, one in rasters.items() if "data" in one.get("roles", ())} or rasters
    itself = [link for link in item.get("links") or () if link.get("rel") == "self" and link.get("href")]
    if len(data) > 1 and itself:
        return str(itself[0]["href"])
    if len(data) > 1 and item.get("id"):
        return f"{path.absolute()}#{item['id']}"
    if len(data) != 1:
        raise _unreadable(
            path,
            f"item {item.get('id')} has {len(data)} rasters ({', '.join(data) or 'none'}), expected one",
            "name the asset with --asset KEY; or give items one by one, or with an id",
        )
    return str(next(iter(data.values()))["href"])


def _is_raster(asset: dict[str, Any]) -> bool:
    kind = str(asset.get("type", ""))
    return kind.startswith(_RASTER_TYPES) or str(asset.get("href", "")).lower().endswith(_RASTER_SUFFIXES)


def _against(path: Path, href: str) -> str:
    """STAC resolves relative references against the document."""
    if href.startswith("file://"):
        return href.removeprefix("file://")
    return href if "://" in href or Path(href).is_absolute() else str(path.absolute().parent / href)


def _refuse_duplicates(rows: Sequence[SceneRow]) -> None:
    """The same scene twice, or two scenes for one folder; letter case does not tell folders apart everywhere."""
    by_scene, by_name = defaultdict(list), defaultdict(list)
    for number, row in enumerate(rows, 1):
        by_scene[row.scene].append(number)
        by_name[row.name.lower()].append(number)
    twice = [f"{scene} (rows {_listed(numbers)})" for scene, numbers in by_scene.items() if len(numbers) > 1]
    clash = [
        f"folder {rows[numbers[0] - 1].name!r} for {', '.join(rows[n - 1].scene for n in numbers[:3])}"
        for numbers in by_name.values()
        if len({rows[n - 1].scene for n in numbers}) > 1
    ]
    if twice or clash:
        raise UsageError(
            "; ".join(
                ["given twice: " + "; ".join(twice[:5])] * bool(twice) + ["two scenes in one " + c for c in clash[:5]]
            )
            + (f"; and {len(twice) + len(clash) - 10} more" if len(twice) + len(clash) > 10 else ""),  # noqa: PLR2004 - as many as a person reads
            code="BA-003",
            title="Scenes or folders are named twice",
            fix="remove the duplicates, or give a list with a column `name` that differs for each scene",
        )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5]))


def _unreadable(path: Path, reason: str, fix: str) -> UsageError:
    return UsageError(
        f"the list of scenes cannot be used: {reason}",
        code="BA-001",
        title="List of scenes cannot be used",
        where=str(path),
        fix=fix,
    )
