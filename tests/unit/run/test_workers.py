"""How cores and GPUs are shared out; processes are real, GPUs are only named."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest
import torch

from pipeline.errors import UsageError
from pipeline.infer import resolve_device
from pipeline.run.cluster import connect
from pipeline.run.settings import make_settings
from pipeline.run.workers import (
    cores_per_worker,
    decoding_threads,
    device_wanted,
    environment_of,
    gpus,
    num_workers,
    tiles_in_flight,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def has_gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def pretend(count: int, named: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        if named is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)

    return pretend


def test_gpus_are_named_as_the_environment_names_them(has_gpus: Callable[..., None]) -> None:
    has_gpus(2)
    assert gpus() == ("0", "1")
    has_gpus(2, "3, GPU-5ebe9f43")
    assert gpus() == ("3", "GPU-5ebe9f43")
    has_gpus(1, "1,7")  # CUDA stops at the first that it cannot find
    assert gpus() == ("1",)


def test_workers_take_the_gpus_in_turn(has_gpus: Callable[..., None]) -> None:
    has_gpus(2, "4,6")
    assert [environment_of(n, "cuda") for n in range(3)] == [{"CUDA_VISIBLE_DEVICES": n} for n in ("4", "6", "4")]
    assert environment_of(0, "cpu") == {}
    has_gpus(0)
    assert environment_of(0, "cuda") == {}


def test_a_cuda_cluster_has_a_worker_for_each_gpu(has_gpus: Callable[..., None]) -> None:
    has_gpus(3)
    assert num_workers(make_settings({"cluster": "cuda"})) == 3
    assert num_workers(make_settings({"cluster": "cuda", "workers": 2})) == 6
    assert num_workers(make_settings({"workers": 2})) == 2


def test_cores_are_shared_out_and_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    for given, cores in (({}, 16), ({"workers": 4}, 4), ({"workers": 40}, 1)):
        settings = make_settings(given)
        assert cores_per_worker(settings) == cores
        assert decoding_threads(settings) == cores
        assert 2 <= tiles_in_flight(settings, "cpu") <= 3
        assert tiles_in_flight(settings, "cuda") == min(8, max(3, cores))


def _visible() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_each_process_finds_its_own_gpu(has_gpus: Callable[..., None]) -> None:
    has_gpus(2, "4,6")
    with connect(make_settings({"cluster": "cuda"}), device="cuda") as connection:
        assert sorted(connection.client.run(_visible).values()) == ["4", "6"]
        assert connection.slots == 2 * tiles_in_flight(make_settings({"cluster": "cuda"}), "cuda")


def test_a_cuda_cluster_on_a_machine_without_a_gpu_or_on_cpus_is_refused() -> None:
    with pytest.raises(UsageError, match="uses none"):
        make_settings({"cluster": "cuda", "device": "cpu"})
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="CF-020"):
            resolve_device(device_wanted(make_settings({"cluster": "cuda"})))


def _log_as_a_heartbeat_that_nobody_hears() -> None:
    log = logging.getLogger("distributed.worker")
    log.error("Failed to communicate with scheduler during heartbeat.", exc_info=OSError("stream is closed"))


def test_what_workers_log_while_they_end_does_not_reach_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """A heartbeat may meet a scheduler that closes: its traceback is not the user's."""
    with connect(make_settings({"workers": 2})) as connection:
        connection.client.run(_log_as_a_heartbeat_that_nobody_hears)
    assert "heartbeat" not in capfd.readouterr().err
