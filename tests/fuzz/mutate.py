"""Damage to files, drawn from a seeded generator: bytes, TIFF directories, JSON documents, lines of text."""

from __future__ import annotations

import copy
import json
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

_NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 32, 33, 64, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 11: 4, 12: 8, 16: 8}
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 1e308, -1e-308, 2**63, 2**64, -(2**70), 0.5, "", "a", "no", "-", "\0", "../../etc",
    "NaN", "1e999", " ", "é" * 300, [], {}, [[]], [None], {"a": 1}, ["a", "a"], [1, "2"], "s3://",
    "https://", "/vsicurl/x",
)  # fmt: skip
_TEXTS = (
    "", "\n", "\t", "\0", ":", "- ", "#", "'", '"', "&a ", "*a", "!!python/object:x ", "<<: ", "{", "}", "[", "]", ",",
    "|", ">", "%", "@", "\\", "\r", "\ufeff", "\u2028", "é", "=cmd", "1e999", "999999999999999999999999", "~", "---\n",
    "...\n",
)  # fmt: skip


def damage_bytes(data: bytes, rng: random.Random, *, within: int | None = None) -> bytes:
    """One to eight changes in the first `within` bytes: other bytes, numbers, runs cut out, doubled or moved."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not made:
            break
        at = rng.randrange(min(len(made), within or len(made)))
        kind = rng.randrange(7)
        if kind == 0:
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            made[at] = rng.choice((0, 1, 127, 128, 255))
        elif kind in (2, 3):
            size, code = rng.choice(((2, "H"), (4, "I"), (8, "Q")))
            number = struct.pack(rng.choice("<>") + code, rng.choice(_NUMBERS) % 2 ** (8 * size))
            made[at : at + size] = number[: len(made) - at]
        elif kind == 4:
            del made[at : at + rng.randrange(1, 64)]
        elif kind == 5:
            made[at:at] = made[at : at + rng.randrange(1, 64)]
        else:
            del made[at + 1 :]
    return bytes(made)


def damage_tiff(data: bytes, rng: random.Random) -> bytes:
    """A change to fields of its first directory, as a fuzzer that knows the format makes them; else to any bytes."""
    if rng.random() < 0.35 or len(data) < 16:
        return damage_bytes(data, rng, within=rng.choice((64, 512, None)))
    order = ">" if data[:2] == b"MM" else "<"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    start = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    head, entry, word = (8, 20, "Q") if big else (2, 12, "I")
    if start + head > len(data):
        return damage_bytes(data, rng)
    count = struct.unpack_from(order + ("Q" if big else "H"), data, start)[0]
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = start + head + entry * rng.randrange(max(count, 1))
        if at + entry > len(made):
            continue
        tag, kind, number = struct.unpack_from(f"{order}HH{word}", made, at)
        field = rng.randrange(5)
        if field == 0:
            struct.pack_into(
                order + "H", made, at, rng.choice((tag + 1, tag - 1, 256, 257, 258, 259, 277, 322, 33550)) % 65536
            )
        elif field == 1:
            struct.pack_into(order + "H", made, at + 2, rng.choice((*range(20), 65535)))
        elif field == 2:
            struct.pack_into(
                order + word, made, at + 4, rng.choice((number + 1, 0, 1, 2, 3, 2**16, 2**31, 2**32 - 1)) % 2**32
            )
        else:
            _damage_value(made, at, (order, word, kind, number), rng)
    return bytes(made)


def _damage_value(made: bytearray, at: int, field: tuple[str, str, int, int], rng: random.Random) -> None:
    """Of one entry, in its place or where it points to."""
    order, word, kind, number = field
    inside = at + 4 + struct.calcsize("<" + word)
    room = struct.calcsize("<" + word)
    size = _TYPE_SIZES.get(kind, 1)
    place, available = inside, room
    if size * number > room and rng.random() < 0.7:
        place = struct.unpack_from(order + word, made, inside)[0]
        available = size * number
    where = place + size * rng.randrange(max(available // size, 1))
    code = {1: "B", 2: "H", 4: "I", 8: "Q"}[size]
    if where + size <= len(made):
        struct.pack_into(order + code, made, where, rng.choice((*_NUMBERS, rng.getrandbits(32))) % 2 ** (8 * size))


def damage_json(document: Any, rng: random.Random) -> bytes:
    """Values replaced, keys dropped, renamed or moved elsewhere; now and then the text itself is damaged too."""
    made = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 2, 4))):
        holders = [one for one in _containers(made) if one]
        if not holders:
            break
        holder = rng.choice(holders)
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        kind = rng.randrange(5)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[str(rng.choice(("", "type", "x", key + "_", "é")))] = holder.pop(key)
        elif kind == 2:
            holder[key] = copy.deepcopy(rng.choice([*_containers(made)]))
        elif kind == 3 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))
    text = json.dumps(made).encode()
    return damage_bytes(text, rng) if rng.random() < 0.15 else text


def _containers(value: Any) -> list[Any]:
    """All objects and lists of a document."""
    found = []
    if isinstance(value, dict | list):
        found.append(value)
        for part in value.values() if isinstance(value, dict) else value:
            found += _containers(part)
    return found


def damage_text(text: str, rng: random.Random) -> bytes:
    """Lines doubled, dropped or swapped, pieces put in that mean something to YAML and CSV; now and then bytes."""
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind == 0:
            lines.insert(at, lines[at])
        elif kind == 1 and len(lines) > 1:
            del lines[at]
        elif kind == 2:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == 3:
            lines[at] = lines[at].replace(":", rng.choice((": ", "", "::", ": &a", ": *a", ": |", ": [", ": {"))) or "x"
        elif kind == 4:
            lines[at] = lines[at].partition(":")[0] + ": " + str(rng.choice(_VALUES))
        else:
            column = rng.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:column] + rng.choice(_TEXTS) * rng.choice((1, 1, 1, 50)) + lines[at][column:]
    made = "\n".join(lines).encode("utf-8", "surrogatepass")
    return damage_bytes(made, rng) if rng.random() < 0.2 else made
