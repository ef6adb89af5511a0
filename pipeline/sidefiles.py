"""Files that SQLite keeps beside a database, where a GeoPackage is about to be replaced or removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def remove_side_files(path: Path) -> None:
    """Remove the journals beside a GeoPackage; nothing happens to files of other kinds.

    A program that has the old file open, or died with it open, leaves them. SQLite takes them by name for the new
    file's, plays them into it, and destroys it (https://www.sqlite.org/howtocorrupt.html, 1.4). Who has the old file
    open keeps both, without names.
    """
    if path.suffix.lower() != ".gpkg":
        return
    for ending in ("-journal", "-wal", "-shm"):
        side = path.with_name(path.name + ending)
        if side.exists():
            side.unlink(missing_ok=True)
