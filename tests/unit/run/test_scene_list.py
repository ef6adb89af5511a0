"""Lists of scenes, and the names of their folders."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import OutputError, UsageError
from pipeline.run.outcomes import FOLDER, Outcome, Outcomes
from pipeline.run.scene_list import SceneRow, collect, slug
from pipeline.run.share import Share

if TYPE_CHECKING:
    from pathlib import Path


@given(st.text(max_size=300), st.text(max_size=300))
def test_t6_any_name_becomes_a_safe_one_and_no_two_become_one(one: str, other: str) -> None:
    safe = slug(one)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,120}", safe)
    assert not safe.startswith((".", "-"))
    assert (slug(other) == safe) == (one == other)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a\0b", "x" * 300, "CON", "trailing.", "", "ä ö", "-rf"])
def test_t6_names_that_would_lead_elsewhere(name: str) -> None:
    assert slug(name) != name
    assert "/" not in slug(name)


def test_patterns_lists_and_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.tif", "b.tif", "c[1].tif"):
        (tmp_path / name).touch()
    (tmp_path / "l.txt").write_text("# comment\n\na.tif\n")
    (tmp_path / "l.csv").write_text("\ufeffname,path,cloud\nfirst,b.tif,3\n,https://host/x/y.tif?sig=1,4\n", "utf-8")
    pq.write_table(pa.table({"href": ["s3://bucket/k.tif"], "name": ["k"]}), tmp_path / "l.parquet")
    monkeypatch.chdir(tmp_path.parent)
    found = collect([tmp_path / "c[1].tif"], [tmp_path / f"l.{suffix}" for suffix in ("txt", "csv", "parquet")])
    assert [row.name for row in found] == [slug("c[1]"), "a", "first", "y", "k"]
    assert found[1].scene == str(tmp_path / "a.tif"), "relative to the list where it is not here"
    assert found[3].scene == "https://host/x/y.tif?sig=1"
    assert [row.name for row in collect([str(tmp_path / "[ab].tif")], [])] == ["a", "b"]


def test_stac_items(tmp_path: Path) -> None:
    tif = {"type": "image/tiff; application=geotiff", "roles": ["data"]}
    items = [
        {"id": "one", "assets": {"visual": {"href": "one.tif", **tif}, "thumbnail": {"href": "t.png"}}},
        {"id": "two", "assets": {"a": {"href": "https://h/2a.tif", **tif}, "b": {"href": "2b.tif", **tif}}},
    ]
    path = tmp_path / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items[:1]}))
    assert collect([], [path]) == [SceneRow(name="one", scene=str(tmp_path / "one.tif"))]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    assert collect([], [path])[-1] == SceneRow(name="two", scene=f"{path}#two"), "found by its id"
    with pytest.raises(UsageError, match=r"item one has the assets visual, thumbnail"):
        collect([], [path], asset="a")
    del items[-1]["id"]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    with pytest.raises(UsageError, match=r"BA-001.*item None has 2 rasters \(a, b\).*--asset"):
        collect([], [path])
    items[-1]["id"] = "two"
    items[-1]["links"] = [{"rel": "self", "href": "https://host/items/two.json"}]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    assert collect([], [path])[-1] == SceneRow(name="two", scene="https://host/items/two.json")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("l.csv", "id,cloud\n1,2\n", "columns id, cloud"),
        ("l.csv", "scene,name\n,x\n", "line 2 has no scene"),
        ("l.json", "[1", "Expecting"),
        ("l.json", "{}", "no STAC ItemCollection"),
        ("l.doc", "a", "suffix is .doc"),
        ("l.parquet", "no", "."),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        collect([], [tmp_path / name])
    assert caught.value.code == "BA-001"


def test_no_scene_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="BA-002"):
        collect([str(tmp_path / "*.tif")], [])


@given(st.integers(0, 50), st.integers(1, 9))
def test_shares_are_a_partition(count: int, parts: int) -> None:
    items = list(range(count))
    shares = [Share(index=i, count=parts).of(items) for i in range(parts)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["", "3", "3/3", "a/b", "-1/2", "1/0", "1/2/3"])
def test_shares_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="CF-007"):
        Share.parse(text)


def test_b16_names_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    """Not met as a crash when the list is written down; a pattern may find them."""
    for name in (b"a.tif", b"\xff.tif"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    with pytest.raises(UsageError, match=r"CF-080.*\\xff\.tif"):
        collect([str(tmp_path / "*.tif")], [])


def test_c43_c44_a_long_list_is_looked_through_at_once(tmp_path: Path) -> None:
    """A hundred thousand rows, three of which are there twice: all three are named."""
    rows = [f"/data/{number % 97}/s{number}.tif" for number in range(100_000)]
    (tmp_path / "scenes.txt").write_text("\n".join([*rows, *rows[5:8]]))
    with pytest.raises(UsageError, match="BA-003") as caught:
        collect([], [tmp_path / "scenes.txt"])
    assert all(f"s{number}.tif" in caught.value.what for number in (5, 6, 7))


def test_a15_what_was_frozen_counts_not_the_list_as_it_is_now(tmp_path: Path) -> None:
    """Tasks of an array are given no list: one that is edited after the submission changes nothing for them."""
    listed = tmp_path / "scenes.txt"
    listed.write_text("/data/a.tif\n/data/b.tif")
    frozen = Outcomes(tmp_path / "out").freeze(collect([], [listed]), {"model": "m"})
    listed.write_text("/data/c.tif")
    again = Outcomes(tmp_path / "out").freeze([], {"model": "m"})
    assert again == frozen
    assert [Share(index=i, count=4).of(again) for i in range(4)] == [[frozen[0]], [frozen[1]], [], []]
    with pytest.raises(OutputError, match=r"(?s)BA-004.*scene a: was"):
        Outcomes(tmp_path / "out").freeze([SceneRow(name="a", scene="/elsewhere/a.tif")], {"model": "m"})


def test_torn_outcomes_are_dropped_and_the_last_attempt_speaks(tmp_path: Path) -> None:
    first = Outcomes(tmp_path)
    first.add(Outcome(name="a", status="failed", exit_code=8, attempt=1))
    first.add(Outcome(name="a", status="done", attempt=2))
    first.add(Outcome(name="b", status="done"))
    first.close()
    [file] = (tmp_path / FOLDER).glob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-5])
    again = Outcomes(tmp_path)
    assert {name: one.status for name, one in again.all.items()} == {"a": "done"}


@pytest.mark.parametrize("order", [("done", "failed"), ("failed", "done"), ("empty", "failed"), ("failed", "empty")])
def test_of_two_who_end_a_scene_at_once_the_one_that_succeeded_speaks(tmp_path: Path, order: tuple[str, str]) -> None:
    """Their files are read in the order of random names."""
    for number, status in enumerate(order):
        one = Outcomes(tmp_path)
        one.add(Outcome(name="a", status=status))  # type: ignore[arg-type]
        one.close()
        for file in (tmp_path / FOLDER).glob("*-*-*.jsonl"):
            file.rename(file.with_name(f"{number}.jsonl"))
    assert Outcomes(tmp_path).all["a"].status != "failed"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("~nobody-of-that-name/a.tif", ""), ("a" * 5000 + ".tif", ""), ("[" + "a" * 5000 + "]*", "BA-002"),
        ("a\0*", "BA-002"), ("[", "BA-002"),
    ],
)  # fmt: skip
def test_names_that_no_file_can_have_are_no_mistake_of_ours(tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / "l.csv").write_text(f"scene\n{name}\n")
    if code:
        with pytest.raises(UsageError, match=code):
            collect([], [tmp_path / "l.csv"])
    else:
        assert len(collect([], [tmp_path / "l.csv"])) == 1
