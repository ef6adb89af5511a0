"""Dockerfiles and their lock files."""

from __future__ import annotations

import difflib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.unit.deploy.deployment import ROOT, lock_module, tool

LOCK = lock_module()
DOCKERFILES = (ROOT / "docker" / "Dockerfile", ROOT / "docker" / "Dockerfile.cuda")


def _locked(path: Path) -> dict[str, str]:
    entries: dict[str, str] = LOCK.parse(path.read_text())
    return entries


def _requirements() -> list[Requirement]:
    """What the project needs in an image: the core, and every extra that an image may have."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        content = tomllib.load(file)
    project = content["project"]
    extras = [text for extra in LOCK.image_extras() for text in project["optional-dependencies"][extra]]
    return [Requirement(text) for text in (*project["dependencies"], *extras, *content["build-system"]["requires"])]


@pytest.mark.parametrize("path", [LOCK.CPU, LOCK.CUDA], ids=["cpu", "cuda"])
def test_t14_a_lock_holds_versions_and_hashes_and_nothing_else(path: Path) -> None:
    line = re.compile(r"#.*|[a-z0-9][a-z0-9.-]*==[\w.!]+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    bad = [text for text in path.read_text().splitlines() if not line.fullmatch(text)]
    assert not bad
    assert "://" not in path.read_text()
    assert all("--hash=sha256:" in entry for entry in _locked(path).values())
    assert not {"torchvision", "lightning"} & set(_locked(path))


def test_the_locks_differ_in_pytorch_only() -> None:
    cpu, cuda = _locked(LOCK.CPU), _locked(LOCK.CUDA)
    assert {name: cuda[name] for name in cpu} == cpu
    only = set(cuda) - set(cpu)
    assert {"torch", "triton"} <= only
    assert not [name for name in only - {"torch", "triton"} if not name.startswith(("nvidia-", "cuda-"))]
    assert (ROOT / "constraints.txt").read_text().strip() in cuda["torch"].split(" ")


def test_the_locks_satisfy_the_project() -> None:
    locked = _locked(LOCK.CUDA)
    for requirement in _requirements():
        entry = locked.get(requirement.name.lower().replace("_", "-"))
        assert entry is not None, f"{requirement.name} is not locked: run `make lock`"
        version = entry.splitlines()[0].partition("==")[2].rstrip(" \\")
        assert requirement.specifier.contains(version), f"{requirement} is locked as {version}: run `make lock`"


def test_the_images_differ_in_pytorch_only() -> None:
    cpu, cuda = (re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).splitlines() for path in DOCKERFILES)
    differ = [text for text in difflib.ndiff(cpu, cuda) if text[0] in "+-"]
    allowed = re.compile(
        "torch|requirements-(cpu|cuda)|NVIDIA|NUMBA_CACHE_DIR|constraints|--mount=type=cache", re.IGNORECASE
    )
    assert not [text for text in differ if not allowed.search(text)]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_as_a_user_and_check_what_they_install(path: Path) -> None:
    text = path.read_text()
    final = text[text.rindex("\nFROM ") :]
    assert "\nUSER 1000:1000\n" in final
    assert "\nHEALTHCHECK " in final
    assert "--require-hashes" in text
    assert text.count("\nFROM ") == 2
    assert re.search(r"^ARG PYTHON_IMAGE=\S+:3\.11\.\d+-slim-\w+$", text, re.MULTILINE)
    fetching = [line for line in re.findall(r"pip (?:install|wheel) .*", text) if "--no-index" not in line]
    assert not fetching


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint(path: Path) -> None:
    done = subprocess.run([tool("hadolint"), "--no-color", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert not done.stdout


def test_shellcheck() -> None:
    scripts = [*(ROOT / "docker").rglob("*.sh"), *(ROOT / "configs").rglob("*.sh"), ROOT / ".ci" / "run"]
    done = subprocess.run([tool("shellcheck"), *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_yamllint() -> None:
    rules = (
        "{extends: default, rules: {line-length: {max: 130}, document-start: disable, comments-indentation: disable}}"
    )
    command = [tool("yamllint"), "--strict", "-d", rules, ROOT / "configs", ROOT / "docker"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_entry_point_copies_kernels_that_it_cannot_write_beside(tmp_path: Path) -> None:
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    (kernels / "trace.nbc").write_text("compiled")
    script = ROOT / "docker" / "entrypoint.sh"
    show = [str(script), "sh", "-c", 'echo "$NUMBA_CACHE_DIR"; cat "$NUMBA_CACHE_DIR/trace.nbc"']
    where: dict[bool, str] = {}
    for writable in (True, False):
        mount = [] if writable else _read_only(kernels)
        command = [*mount, *show]
        environment = {
            "NUMBA_CACHE_DIR": str(kernels),
            "PATH": "/usr/bin:/bin:/sbin:/usr/sbin",
            "TMPDIR": str(tmp_path),
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if not writable and "unshare" in done.stderr:
            pytest.skip("mounts of one's own are not allowed here")
        assert done.returncode == 0, done.stderr
        where[writable], content = done.stdout.splitlines()
        assert content == "compiled"
    assert where[True] == str(kernels)
    assert where[False] != str(kernels)


def _read_only(folder: Path) -> list[str]:
    """A prefix that runs a command where `folder` is mounted read-only."""
    script = f'mount --bind {folder} {folder} && mount -o remount,bind,ro {folder} && exec "$@"'
    return [tool("unshare"), "--mount", "--map-root-user", "sh", "-c", script, "sh"]
