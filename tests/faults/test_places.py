"""B16, B17, B18, B19: names and places of every kind, from the command to what is written."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pyogrio
import pytest
import rasterio

import pipeline as sm
from pipeline.errors import UsageError
from tests.commands import Cli, assert_block
from tests.scenes import save_threshold_model, sha256, smooth_values, write_scene

SHAPE = (70, 90)
FLAGS = ("--patch", "64", "--tile", "1", "--vectors", "geojson,gpkg", "-q")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene, a model, and a run under plain names."""
    folder = tmp_path_factory.mktemp("places")
    write_scene(folder / "scene.tif", smooth_values(2, SHAPE), names=("b0", "b1"))
    save_threshold_model(folder / "model")
    sm.segment(folder / "scene.tif", folder / "model", folder / "whole", patch=64, tile=1)
    return folder


NAMES = [
    "with space", "it's", 'a"b', "100%25", "what?", "#1", "a&b;c", "$HOME", "back\\slash", "-dash", "--overwrite", "*",
    "[x]", "~", "C:", "ends.", unicodedata.normalize("NFC", "Köln"), unicodedata.normalize("NFD", "Köln"), "地図",
    "a" * 240,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_b16_b18_scenes_models_and_folders_of_any_name(ground: Path, tmp_path: Path, cli: Cli, name: str) -> None:
    place = tmp_path / name
    place.mkdir()
    (place / f"{name}.tif").write_bytes((ground / "scene.tif").read_bytes())
    (place / "model").symlink_to(ground / "model")
    code, _, err = cli("segment", *FLAGS, "-m", place / "model", "-o", place / "out", "--", place / f"{name}.tif")
    assert code == 0, err
    assert sha256(place / "out" / "mask.tif") == sha256(ground / "whole" / "mask.tif")
    with rasterio.open(place / "out" / "mask.tif") as mask:
        assert mask.shape == SHAPE
    assert pyogrio.read_info(place / "out" / "polygons.gpkg", layer="polygons")["features"] > 0
    json.loads((place / "out" / "item.json").read_text())
    code, text, _ = cli("status", "--json", "--", place / "out")
    assert (code, json.loads(text)["kind"]) == (0, "complete")


@pytest.mark.parametrize("name", ["-dash.tif", "--overwrite"])
def test_b16_names_that_look_like_options_are_taken_after_two_dashes(
    ground: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes((ground / "scene.tif").read_bytes())
    assert cli("segment", *FLAGS, "-m", ground / "model", "-o", "out", "--", name)[0] == 0
    assert Path("out/mask.tif").exists()


@pytest.mark.parametrize("name", ["new\nline", "tab\there", "\x1b[31mred", "bell\x07"])
def test_b16_control_characters_never_reach_the_screen(ground: Path, tmp_path: Path, cli: Cli, name: str) -> None:
    """They work or are refused; in neither case does a name move the cursor or forge a line."""
    code, out, err = cli("segment", ground / "scene.tif", "-m", ground / "model", "-o", tmp_path / name, *FLAGS[:-1])
    assert code in {0, 2}
    if code == 2:
        assert_block(err, "CF-002")
    said = out + err
    assert not [c for c in said if unicodedata.category(c) == "Cc" and c != "\n"], repr(said)
    assert name not in said


@pytest.mark.parametrize("length", [256, 5000])
def test_b17_folders_whose_names_are_too_long(ground: Path, tmp_path: Path, cli: Cli, length: int) -> None:
    out = tmp_path / ("a" * length if length < 1000 else "/".join(["b" * 200] * 25))
    code, _, err = cli("segment", ground / "scene.tif", "-m", ground / "model", "-o", out, *FLAGS)
    assert code == 2
    assert_block(err, "CF-002")


def test_b17_the_longest_names_that_fit_work(ground: Path, tmp_path: Path, cli: Cli) -> None:
    name = "ü" * 125 + ".tif"  # 254 bytes
    (tmp_path / name).write_bytes((ground / "scene.tif").read_bytes())
    out = tmp_path / ("ö" * 127)
    assert cli("segment", tmp_path / name, "-m", ground / "model", "-o", out, *FLAGS)[0] == 0
    assert sha256(out / "mask.tif") == sha256(ground / "whole" / "mask.tif")


def test_b18_names_that_differ_by_case_are_two(ground: Path, tmp_path: Path, cli: Cli) -> None:
    for name in ("Out", "out"):
        assert cli("segment", ground / "scene.tif", "-m", ground / "model", "-o", tmp_path / name, *FLAGS)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"Out", "out"}


@pytest.mark.parametrize("kind", ["loop", "dangling", "to a file"])
def test_b19_links_that_lead_to_no_folder(ground: Path, tmp_path: Path, cli: Cli, kind: str) -> None:
    link = tmp_path / "out"
    (tmp_path / "file").write_text("")
    link.symlink_to({"loop": link, "dangling": tmp_path / "nowhere", "to a file": tmp_path / "file"}[kind])
    code, _, err = cli("segment", ground / "scene.tif", "-m", ground / "model", "-o", link, *FLAGS)
    assert code == 2
    assert_block(err, "CF-002")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_b19_a_scene_that_is_a_loop_is_told(ground: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "loop.tif").symlink_to(tmp_path / "loop.tif")
    code, _, err = cli("segment", tmp_path / "loop.tif", "-m", ground / "model", "-o", tmp_path / "out", *FLAGS)
    assert code == 3
    assert_block(err, "IN-0")
    assert not (tmp_path / "out").exists()


def test_b19_an_output_folder_may_be_a_link_but_what_is_written_replaces_links(
    ground: Path, tmp_path: Path, cli: Cli
) -> None:
    """The folder is the user's choice; a link planted at a result's name is replaced, never written through."""
    (tmp_path / "real").mkdir()
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "preview.png").symlink_to(tmp_path / "victim")
    command = ("segment", ground / "scene.tif", "-m", ground / "model", "-o", tmp_path / "out", *FLAGS)
    assert cli(*command)[0] == 5  # somebody's file has the name of a result
    assert cli(*command, "--overwrite")[0] == 0
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "real" / "preview.png").is_symlink()


def test_b19_a_private_folder_that_is_a_link_is_refused(ground: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".scenemask").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="link") as caught:
        sm.segment(ground / "scene.tif", ground / "model", tmp_path / "out", patch=64)
    assert caught.value.code == "CF-002"
    assert not list((tmp_path / "elsewhere").iterdir())
