"""Packages whose public names are loaded when they are first used (PEP 562): some bring seconds of imports."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """`__getattr__` of a package. No module in it may have the name of what is loaded so, or it stands in its place.

    Args:
        package: Its `__name__`.
        homes: Public name -> module of the package that has it.
    """

    def load(name: str) -> object:
        if name not in homes:
            msg = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(msg)
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return load
