"""Reading settings files: strict YAML 1.2 scalars, no duplicate keys, errors with line, column and caret."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

_MAX_CHARACTERS = 10**6
_MAX_DIGITS = 300
"""Of a whole number: more fit no setting, and Python refuses to read very long ones."""


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without the surprises of version 1.1: `no`, `010` and `12:30` are text, `1e3` is 1000; no tags.

    Nor aliases, of which a few lines make more values than memory holds. Numbers are only what would be written like
    that again: `010` may be a class name, and `64` in `patch: 064` is read from the text.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - filled below; the base class has it too

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            name = f"*{event.anchor}" if isinstance(event, yaml.AliasEvent) else f"&{event.anchor}"
            raise yaml.constructor.ConstructorError(
                None, None, f"anchors and aliases ({name}) are not allowed: write the value again", event.start_mark
            )
        if getattr(event, "tag", None) is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the tag {event.tag!r} is not allowed: values need no type here", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        seen: dict[Any, yaml.Mark] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a list or a mapping cannot be a key", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    f"first at line {seen[key].line + 1}", None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen[key] = key_node.start_mark
        return super().construct_mapping(node, deep=deep)


for tag, pattern, first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", rf"^(?:0|-?[1-9][0-9]{{0,{_MAX_DIGITS}}})$", "-0123456789"),
    (
        "float",
        r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|nan))$",
        "-+0123456789.",
    ),
):
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a settings file.

    Raises:
        UsageError: CF-001 the file is missing or not readable; CF-003 it is not valid YAML, with line and column;
            CF-004 it holds something else than keys and values.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, f"cannot read the settings file: {error}") from error
    if len(text) > _MAX_CHARACTERS:
        raise _unreadable(
            path, f"the settings file has more than {_MAX_CHARACTERS} characters; settings fit into a page"
        )
    try:
        document = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - derived from SafeLoader
    except yaml.MarkedYAMLError as error:
        raise _invalid(path, text, error) from error
    except (yaml.YAMLError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UsageError(
            f"not valid YAML: {what}",
            code="CF-003",
            title="Settings file is not valid YAML",
            where=str(path),
            fix="write it as text with one `key: value` per line",
        ) from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(
            f"expected keys and values, got a {type(document).__name__}",
            code="CF-004",
            title="Settings file has no keys",
            where=str(path),
            fix="write one `key: value` per line; configs/segment/ has examples",
        )
    return document


def _unreadable(path: Path, what: str) -> UsageError:
    return UsageError(
        what,
        code="CF-001",
        title="Settings file cannot be read",
        where=str(path),
        fix="check the path given with --config",
    )


def _invalid(path: Path, text: str, error: yaml.MarkedYAMLError) -> UsageError:
    mark = error.problem_mark or error.context_mark
    problem = " ".join(part for part in (error.problem, f"({error.context})" if error.context else "") if part)
    where, excerpt = str(path), ""
    if mark is not None:
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}"
        lines = text.splitlines()
        line = lines[mark.line] if mark.line < len(lines) else ""
        excerpt = f"\n         {line.replace(chr(9), '→')}\n         {' ' * mark.column}^"
    fix = "indent with spaces, not tabs" if "\\t" in problem else "correct the marked place"
    return UsageError(
        f"{problem}{excerpt}", code="CF-003", title="Settings file is not valid YAML", where=where, fix=fix
    )


def parse_scalar(text: str) -> Any:
    """A value as it would be written in a settings file: number, text, list, `null`; what is no YAML stays text."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - derived from SafeLoader
    except (yaml.YAMLError, RecursionError):
        return text
