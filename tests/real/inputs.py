"""The table of odd files and what becomes of each: read by its test, and written as a page for people.

`python -m tests.real.inputs` writes docs/inputs.md from inputs.csv.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("inputs.csv")
PAGE = Path(__file__).parents[2] / "docs" / "inputs.md"
_HEAD = """# Inputs

What is supported, and what becomes of 73 odd, damaged and hostile files: `inspect` and `segment` are run on each of
them (`tests/real/test_inputs.py`). **ok** means that the mask equals, at every pixel, what rasterio's own read of the
file gives: a network that adds up all bands and compares the sum, nodata where rasterio's masks, alpha bands or NaN say
so. A code is a refusal; [errors.md](errors.md) tells its cause and its fix. Nothing is written then. Scenes of more
than one file, on servers and on other grids: [sources.md](sources.md), with the tests that show each of them.

The files come from rio-tiler, rio-cogeo, rasterio and GDAL's own tests; `variants/` is one crop of a Sentinel-2 scene
written in different ways. This page is made by `python -m tests.real.inputs` from `tests/real/inputs.csv`.

"""
_GROUPS = {
    "variants/": "The same scene, written in different ways",
    "odd/real/": "Real rasters with oddities",
    "odd/jp2/": "JPEG 2000",
    "odd/gdal/": "Corners of the TIFF format",
    "odd/corrupt/": "Damaged and hostile files",
    "corrupt/": "Damaged and hostile files",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One file and what is expected of it."""

    file: str
    """Path inside the collection."""
    what: str
    """What is odd about it."""
    inspect: str
    """`ok`, or the code of the refusal."""
    segment: str
    """`ok`, `empty` (a success without a valid pixel), or the code of the refusal."""
    options: str
    """Options that help where `segment` refuses."""
    outcome: str
    """What `segment` gives with them."""


def read_table() -> list[Row]:
    """All rows."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [Row(**row) for row in csv.DictReader(file)]


def page() -> str:
    """The page for people."""
    groups: dict[str, list[str]] = {}
    for row in read_table():
        title = next(title for prefix, title in _GROUPS.items() if row.file.startswith(prefix))
        outcome = _shown(row.segment)
        if row.options:
            outcome += f"; `{row.options}`: {_shown(row.outcome)}"
        name = row.file.rpartition("/")[2]
        groups.setdefault(title, []).append(f"| `{name}` | {row.what} | {_shown(row.inspect)} | {outcome} |")
    head = "| file | what is odd | `inspect` | `segment` |\n|---|---|---|---|\n"
    return _HEAD + "\n".join(f"## {title}\n\n{head}" + "\n".join(rows) + "\n" for title, rows in groups.items())


def _shown(outcome: str) -> str:
    return f"[{outcome}](errors.md#{outcome.lower()})" if "-" in outcome else outcome


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
