"""Files in configs/cluster, and what is refused before anything is opened."""

from __future__ import annotations

from pathlib import Path

import dask
import pytest

from pipeline.errors import UsageError
from pipeline.run.clusters.options import KINDS, NAMES, AddressOptions, LocalOptions, cluster_options, make_options
from pipeline.run.clusters.tuning import tuning
from pipeline.run.room import LIBRARIES_BYTES, budget_left
from pipeline.run.settings import make_settings
from pipeline.run.workers import cores_per_worker, device_wanted, num_workers, starts_workers, workers_wanted
from pipeline.yaml_file import read_yaml

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "cluster"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_each_file_names_every_option_with_its_default(path: Path) -> None:
    written = read_yaml(path)
    model = KINDS[path.stem]
    assert set(written) == set(model.model_fields)
    expected = model(address=written["address"]) if model is AddressOptions else model()
    assert cluster_options(make_settings({"cluster": str(path)})) == expected


def test_a18_workers_are_never_forked() -> None:
    """Whatever Dask's own settings say: GDAL and PyTorch have threads, which a fork would lose."""
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "fork"}),
        dask.config.set(tuning(LocalOptions())),
    ):
        assert dask.config.get("distributed.worker.multiprocessing-method") == "spawn"


def test_there_is_a_file_for_each_kind() -> None:
    assert {path.stem for path in FILES} == set(KINDS) - {"pbs", "lsf", "sge"}  # which share that of slurm


@pytest.mark.parametrize("name", NAMES)
def test_a_name_means_its_kind_with_defaults(name: str) -> None:
    assert cluster_options(make_settings({"cluster": name})) == KINDS[name](kind=name)


def _file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kind: slurm\nwaltime: 01:00:00\ncors: 3", ["'waltime', did you mean 'walltime'", "did you mean 'cores'"]),
        ("kind: slurm\nworkers: 0\nmemory: 8 apples", ["workers: ", "memory: '8 apples' is not a size"]),
        ("kind: slurm\nwalltime: soon", ["walltime: 'soon' is not a time"]),
        ("kind: slurm\nwalltime: 8 min", ["leaves no time for work"]),
        ("kind: slurm\nworkers: 4\nmost_workers: 2", ["most_workers 2 is less than workers 4"]),
        ("kind: slurm\ntcp_timeout: 5 s", ["tcp_timeout: "]),
        ("kind: slurmy", ["kind 'slurmy' is not one of local, cuda"]),
        ("workers: 3", ["no kind"]),
        ("kind: local\nqueue: gpu", ["unknown key 'queue'"]),
        ("kind: address", ["address: Field required"]),
        ("kind: address\naddress: ws://h:1", ["neither tcp://host:port nor tls://host:port"]),
        ("kind: address\naddress: tls://h:1\nca: a.pem", ["belong together; only ca given"]),
        ("kind: address\naddress: tcp://127.0.0.1:1\nca: a\ncert: b\nkey: c", ["are for tls://"]),
    ],
)
def test_wrong_files_are_refused_with_every_problem(tmp_path: Path, text: str, told: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        make_settings({"cluster": _file(tmp_path, text)})
    assert caught.value.code == "CF-040"
    assert all(words in caught.value.what for words in told), caught.value.what


def test_a_file_that_is_not_there_or_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="CF-001"):
        make_settings({"cluster": str(tmp_path / "none.yaml")})
    with pytest.raises(UsageError, match="CF-003"):
        make_settings({"cluster": _file(tmp_path, "kind: slurm\nkind: pbs")})


def test_a_file_is_found_again_from_another_folder_and_read_again_when_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _file(tmp_path, "kind: local\nworkers: 2")
    monkeypatch.chdir(tmp_path)
    settings = make_settings({"cluster": "cluster.yaml"})
    monkeypatch.chdir("/")
    assert settings.cluster == path
    assert workers_wanted(settings) == 2
    _file(tmp_path, "kind: local\nworkers: 3")
    assert workers_wanted(settings) == 3


@pytest.mark.parametrize(
    ("address", "safe"),
    [
        ("tcp://127.0.0.1:8786", True), ("tcp://localhost:8786", True), ("tcp://[::1]:8786", True),
        ("tcp://127.9.9.9:1", True), ("tcp://10.0.0.1:8786", False), ("tcp://login1:8786", False),
        ("tcp://0.0.0.0:8786", False), ("tcp://127.0.0.1.example.org:8786", False), ("tcp://[fe80::1]:8786", False),
        ("tcp://localhost.example.org:1", False), ("tls://10.0.0.1:8786", True),
    ],
)  # fmt: skip
def test_t9_plain_tcp_to_other_hosts_is_refused(address: str, safe: bool) -> None:  # noqa: FBT001
    make_settings({"cluster": address, "insecure_cluster": True})
    if safe:
        make_settings({"cluster": address})
        return
    with pytest.raises(UsageError, match=r"CF-041.*not encrypted") as caught:
        make_settings({"cluster": address})
    assert "--insecure-cluster" in caught.value.fix
    assert caught.value.exit_code == 2


def test_tls_files_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"CF-042.*ca\.pem") as caught:
        make_settings({"cluster": _file(tmp_path, "kind: address\naddress: tls://h:1\nca: ca.pem\ncert: c\nkey: k")})
    assert "key" in caught.value.fix


def test_cores_and_memory_are_those_of_the_jobs(tmp_path: Path) -> None:
    path = _file(tmp_path, "kind: slurm\nworkers: 64\ncores: 7\nmemory: 1200MB")
    settings = make_settings({"cluster": path})
    assert (cores_per_worker(settings), workers_wanted(settings), num_workers(settings)) == (7, 64, 1)
    assert workers_wanted(make_settings({"cluster": path, "workers": 3})) == 3
    assert budget_left(settings, "cpu") <= 1_200_000_000 - LIBRARIES_BYTES["cpu"]
    assert starts_workers(settings)
    assert not starts_workers(make_settings({"cluster": "tcp://127.0.0.1:1"}))
    with pytest.raises(UsageError, match="CF-043"):
        make_settings({"cluster": path, "memory": "2GB"})


def test_a_file_for_gpus_wants_gpus(tmp_path: Path) -> None:
    path = _file(tmp_path, "kind: cuda\nworkers: 2")
    assert device_wanted(make_settings({"cluster": path})) == "cuda"
    with pytest.raises(UsageError, match="uses none"):
        make_settings({"cluster": path, "device": "cpu"})


@pytest.mark.parametrize(
    ("text", "seconds"), [("90 s", 90), ("30 min", 1800), ("1.5 h", 5400), ("2 d", 172800), ("12:30:45", 45045), (7, 7)]
)
def test_times(text: object, seconds: int) -> None:
    assert make_options({"kind": "slurm", "wait": text}, where="test").wait == seconds
