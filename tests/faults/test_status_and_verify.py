"""What an output folder holds, told without touching it; and whether it is still what was written."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import rasterio

import pipeline as sm
from pipeline.errors import OutputError
from pipeline.run.audit import audit
from pipeline.run.status import status_of
from pipeline.store import RunLock
from pipeline.store.lock import Owner
from pipeline.store.sealed import sealed
from tests.commands import Cli, assert_block
from tests.faults.commands import Starter
from tests.scenes import save_threshold_model, smooth_values, write_scene

SHAPE = (600, 700)
OPTIONS: dict[str, Any] = {"patch": 160, "tile": 1, "vectors": "geojson", "probabilities": True}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scene, model, and a finished run in `out`."""
    folder = tmp_path_factory.mktemp("run")
    scene = write_scene(folder / "scene.tif", smooth_values(2, SHAPE), names=("b0", "b1"))
    save_threshold_model(folder / "model")
    sm.segment(scene, folder / "model", folder / "out", **OPTIONS)
    return folder


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def killed(finished: Path, starter: Starter) -> Callable[..., None]:
    """Begins the same run in another folder, and kills it at a sync point."""

    def begin(out: Path, at: str, *more: object) -> None:
        options = ["--patch", 160, "--tile", 1, "--probabilities", *more]
        command = ["segment", finished / "scene.tif", "-m", finished / "model", "-o", out, *options]
        assert starter.run(command, kill_at=at).code == -signal.SIGKILL

    return begin


def _everything(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in folder.rglob("*")}


def test_a_complete_run(out: Path, cli: Cli) -> None:
    before = _everything(out)
    code, text, _ = cli("status", out)
    assert code == 0
    assert "complete" in text
    assert "mask.tif" in text
    code, text, _ = cli("status", out, "--json")
    told = json.loads(text)
    run = json.loads((out / "run.json").read_text())
    assert (told["kind"], told["finished"], told["exit_code"]) == ("complete", run["finished"], 0)
    assert told["files"] == {name: facts["bytes"] for name, facts in run["files"].items()}
    assert told["holder"] is None
    assert _everything(out) == before


@pytest.mark.parametrize(
    ("at", "stage", "left"),
    [("after-append:3", "infer", 22), ("begin-mask:1", "mask", 0), ("end-mask:1", "polygons", 0),
     ("end-polygons:1", "files", 0), ("after-remove:1", "commit", 0)],
)  # fmt: skip
def test_an_unfinished_run_and_the_command_that_continues_it(
    killed: Callable[..., None], tmp_path: Path, cli: Cli, at: str, stage: str, left: int
) -> None:
    out = tmp_path / "it's here"
    killed(out, at, "--scratch", tmp_path / "scratch")
    before = _everything(tmp_path)
    code, text, _ = cli("status", out, "--json")
    told = json.loads(text)
    assert code == told["exit_code"] == 75
    assert told["progress"]["stage"] == stage
    assert told["progress"]["done"] == told["progress"]["tiles"] - left
    assert told["progress"]["damaged"] == 0
    assert told["holder"]["beats"] is False
    assert _everything(tmp_path) == before
    command = shlex.split(told["progress"]["command"])
    assert command[0] == "scenemask"
    assert cli(*command[1:])[0] == 0
    assert cli("status", out)[0] == 0
    assert not list((tmp_path / "scratch").iterdir())


def test_damaged_tiles_are_counted(killed: Callable[..., None], tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    killed(out, "after-append:6")
    shards = sorted(p for p in (out / ".scenemask" / "store" / "mask" / "c").rglob("*") if p.is_file())
    shards[1].write_bytes(shards[1].read_bytes()[:-30])
    (ledger,) = (out / ".scenemask" / "ledger").glob("*.jsonl")
    with ledger.open("ab") as file:
        file.write(b'{"tile": torn')
    code, text, _ = cli("status", out, "--json")
    progress = json.loads(text)["progress"]
    assert (code, progress["done"], progress["damaged"], progress["dropped_lines"]) == (75, 5, 1, 1)
    assert "1 damaged" in cli("status", out)[1]


def test_a_run_that_is_going_on_is_told_with_its_process(killed: Callable[..., None], tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    killed(out, "after-append:3")
    with RunLock(out / ".scenemask"):
        told = json.loads(cli("status", out, "--json")[1])
        text = cli("status", out)[1]
    assert told["holder"]["pid"] == os.getpid()
    assert told["holder"]["beats"] is True
    assert told["progress"]["damaged"] is None
    assert f"process {os.getpid()}" in text
    assert "continue with" not in text


@pytest.mark.parametrize("alive", [True, False])
def test_b8_a_holder_on_another_machine_is_watched(out: Path, *, alive: bool) -> None:
    lock = out / ".scenemask" / "lock"
    lock.mkdir(parents=True)
    owner = replace(Owner.me(5.0), machine="elsewhere", host="node7")
    (lock / "owner.json").write_text(json.dumps(asdict(owner)))
    beat, now = lock / "beat", 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if alive and now > 4:
            beat.write_bytes(b"%016d" % 9)

    beat.write_bytes(b"%016d" % 3)
    holder = status_of(out, clock=lambda: now, sleep=sleep).holder
    assert holder is not None
    assert (holder.host, holder.beats) == ("node7", alive)
    assert now < 11


def test_an_overwriting_run_that_was_cut_off_beside_complete_results(
    killed: Callable[..., None], out: Path, cli: Cli
) -> None:
    killed(out, "after-append:3", "--overwrite", "--padding", "zero", "--keep")
    code, text, _ = cli("status", out, "--json")
    told = json.loads(text)
    assert (code, told["kind"], told["progress"]["done"]) == (0, "complete", 3)
    assert shlex.split(told["progress"]["command"])[-2:] == ["--keep", "--overwrite"]
    assert "replace these results" in cli("status", out)[1]


def test_folders_without_a_run(tmp_path: Path, cli: Cli) -> None:
    assert cli("status", tmp_path / "absent")[0] == 2
    assert json.loads(cli("status", tmp_path, "--json")[1])["kind"] == "empty"
    (tmp_path / "mask.tif").write_bytes(b"somebody's")
    code, text, _ = cli("status", tmp_path)
    assert code == 5
    assert "without the record" in text
    (tmp_path / "file").write_text("")
    code, _, err = cli("status", tmp_path / "file")
    assert code == 2
    assert_block(err, "CF-002")


def test_b11_results_that_are_whole(out: Path, cli: Cli) -> None:
    before = _everything(out)
    code, text, _ = cli("verify", out, "--json")
    told = json.loads(text)
    assert code == 0
    assert told["whole"]
    assert set(told["blocks"]) == {"mask.tif", "probabilities.tif"}
    assert told["blocks"]["mask.tif"] == json.loads((out / "run.json").read_text())["tiles"]["total"]
    assert cli("verify", out)[0] == 0
    assert _everything(out) == before


def _flip(path: Path, offset: int, bit: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def _block_at(path: Path, row: int, col: int) -> int:
    """Offset in the file of the middle of a block's bytes, full resolution."""
    with rasterio.open(path) as file:
        offset = int(file.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1))
        return offset + int(file.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=1)) // 2


@pytest.mark.parametrize("name", ["mask.tif", "probabilities.tif"])
def test_b11_flipped_bits_are_named_by_block(out: Path, cli: Cli, name: str) -> None:
    """A bit in the lower right block of the file spoils those tiles only that lie in it."""
    with rasterio.open(out / name) as file:
        block_h, block_w = file.block_shapes[0]
    _flip(out / name, _block_at(out / name, (SHAPE[0] - 1) // block_h, (SHAPE[1] - 1) // block_w))
    code, text, err = cli("verify", out, "--json")
    told = json.loads(text)
    assert code == 5
    assert_block(err, "OU-016")
    assert told["files"][name] == "changed"
    assert set(told["damaged"]) == {name}
    for window in told["damaged"][name]:
        assert window["row_off"] + window["height"] > (SHAPE[0] - 1) // block_h * block_h
        assert window["col_off"] + window["width"] > (SHAPE[1] - 1) // block_w * block_w
    code, _, err = cli("verify", out)
    assert code == 5
    assert f"{name}: {len(told['damaged'][name])} of" in err
    assert "rows" in err


def test_b11_every_flip_anywhere_in_the_mask_is_told(out: Path) -> None:
    size = (out / "mask.tif").stat().st_size
    whole = (out / "mask.tif").read_bytes()
    for offset in range(7, size, max(1, size // 60)):
        _flip(out / "mask.tif", offset, bit=offset % 8)
        found = audit(out)
        assert not found.whole, offset
        assert found.files["mask.tif"] == "changed"
        assert "mask.tif" in found.error(out).what
        (out / "mask.tif").write_bytes(whole)
    assert audit(out).whole


@pytest.mark.parametrize("damage", ["missing", "cut", "another"])
def test_b11_a_mask_that_is_gone_cut_or_another(out: Path, cli: Cli, damage: str) -> None:
    mask = out / "mask.tif"
    if damage == "missing":
        mask.unlink()
    elif damage == "cut":
        mask.write_bytes(mask.read_bytes()[:500])
    else:
        write_scene(mask, smooth_values(1, (64, 64)).astype("uint8"))
    code, text, _ = cli("verify", out, "--json")
    assert code == 5
    assert json.loads(text)["files"]["mask.tif"] == ("missing" if damage == "missing" else "changed")


def test_b11_results_of_a_version_without_blocks_are_verified_by_file(out: Path) -> None:
    run = json.loads((out / "run.json").read_text())
    del run["blocks"]
    (out / "run.json").write_text(json.dumps(sealed(run)))
    assert audit(out).whole
    _flip(out / "preview.png", 100)
    assert audit(out).files["preview.png"] == "changed"


def test_verify_of_what_is_no_finished_run(killed: Callable[..., None], tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli("verify", tmp_path / "absent")
    assert code == 5
    assert_block(err, "OU-015")
    killed(tmp_path / "out", "after-append:2")
    with pytest.raises(OutputError, match="can be continued"):
        audit(tmp_path / "out")
    (tmp_path / "mask.tif").write_bytes(b"somebody's")
    assert_block(cli("verify", tmp_path)[2], "OU-001")


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "settings": lambda told: told.update(settings="no"),
    "identity": lambda told: told.pop("identity"),
    "a number": lambda told: told["identity"]["settings"].update(patch=-1),
    "checksum": lambda told: told.pop("checksum"),
    "everything": lambda told: told.clear(),
}


def test_records_that_somebody_has_changed_are_told_in_one_sentence(
    finished: Path, out: Path, killed: Callable[..., None], tmp_path: Path, cli: Cli
) -> None:
    killed(tmp_path / "begun", "after-append:3")
    for folder, name in ((out, "run.json"), (tmp_path / "begun", ".scenemask/plan.json")):
        honest = (folder / name).read_text()
        args = (finished / "scene.tif", "-m", finished / "model", "-o", folder, "--patch", 160, "--tile", 1)
        for change in CHANGES.values():
            told = json.loads(honest)
            change(told)
            (folder / name).write_text(json.dumps(told))
            for command in (("status", folder), ("verify", folder), ("segment", *args)):
                code, _, err = cli(*command)
                assert code == 5, (command[0], err)
                assert_block(err, "OU-017")
        code, _, err = cli("segment", *args, "--probabilities", "--overwrite")
        assert code == 0, err
        assert cli("verify", folder)[0] == 0
