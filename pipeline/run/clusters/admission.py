"""What is asked of workers: the same packages, an engine that runs there, folders that they see.

Asked by functions that run in each worker: only there is known what it imports and which files it finds.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import platform
import secrets
import socket
from collections import defaultdict
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from distributed import Client

    from pipeline.store import Place

Engine = tuple[str, str, str]
"""Backend, device and precision of a plan."""
_PACKAGES = ("torch", "rasterio", "numpy", "zarr", "dask", "distributed")
_MOST_NAMED = 3
"""Workers that a message names; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a worker says of itself."""

    host: str
    versions: dict[str, str]
    cannot: str | None
    """Why it cannot run the engine; None where it can."""
    unseen: tuple[str, ...]
    """Places that it does not see, each with the reason."""


def require_workers(
    client: Client, *, engine: Engine | None = None, places: Sequence[Place] = (), allow_skew: bool = False
) -> frozenset[str]:
    """Ask all workers that are there, and refuse to start with any that cannot do the work.

    Args:
        client: Connected to them.
        engine: What they must be able to run.
        places: What they must see under the same path or address as this process.
        allow_skew: Take packages that differ in the patch level only.

    Returns:
        Their addresses.

    Raises:
        UsageError: CL-012 packages differ; CL-013 the engine does not run there; CL-014 a place is not seen; CL-015
            the worker cannot even answer.
    """
    tokens = {place: _leave_token(place) for place in dict.fromkeys(places)}
    try:
        given: dict[str, Any] = client.run(answer, engine, tokens, on_error="return")
    finally:
        for place, token in tokens.items():
            place.delete(token)
    for address, told in given.items():
        if not isinstance(told, Answer):
            raise cannot_answer(address, told)
    refuse_misfits(given, engine=engine, mine=versions(engine), allow_skew=allow_skew)
    return frozenset(given)


def refuse_misfits(
    answers: Mapping[str, Answer], *, engine: Engine | None, mine: Mapping[str, str], allow_skew: bool
) -> None:
    """Judge what workers have said of themselves.

    Args:
        answers: Address of a worker -> what it said.
        engine: What it must be able to run.
        mine: Versions of the client.
        allow_skew: Take packages that differ in the patch level only.

    Raises:
        UsageError: CL-012 to CL-014.
    """
    for address, told in answers.items():
        if told.cannot is not None:
            raise UsageError(
                f"worker {address} on {told.host} cannot run the plan: {told.cannot}",
                code="CL-013",
                title="Worker cannot run the plan",
                where=", ".join(engine or ()),
                fix="install there what is missing, leave the worker out, or plan for all of them with --backend, "
                "--device or --precision and --overwrite",
            )
    _refuse_other_packages(answers, mine, allow_skew=allow_skew)
    for address, told in answers.items():
        if told.unseen:
            raise unseen_place(address, told.host, told.unseen[0])


def unseen_place(address: str, host: str, place: str) -> UsageError:
    """CL-014."""
    return UsageError(
        f"worker {address} on {host} does not see {place}",
        code="CL-014",
        title="Worker does not see the place of the tiles",
        where=host,
        fix="choose -o and --scratch on a disk that all hosts mount under the same path, with rights for the "
        "user that workers run as; or --scratch s3://bucket/prefix, with keys where workers find them",
    )


def cannot_answer(address: str, error: object) -> UsageError:
    """CL-015."""
    return UsageError(
        f"worker {address} cannot say what it is: {type(error).__name__}: {_line(error)}",
        code="CL-015",
        title="Worker does not answer",
        where=address,
        fix="install the same scenemask there, in the environment that starts the worker",
    )


async def answer(engine: Engine | None, tokens: Mapping[Place, str]) -> Answer:
    """Run in a worker, beside its loop: imports may take seconds, in which it must go on to say that it lives."""
    return await asyncio.to_thread(answer_here, engine, tokens)


def answer_here(engine: Engine | None, tokens: Mapping[Place, str]) -> Answer:
    """What this process says of itself."""
    unseen = tuple(why for place, token in tokens.items() if (why := _why_unseen(place, token)) is not None)
    return Answer(
        host=socket.gethostname(),
        versions=versions(engine),
        cannot=None if engine is None else why_not(*engine),
        unseen=unseen,
    )


def versions(engine: Engine | None = None) -> dict[str, str]:
    """Versions that decide results, of what is imported here; with those of the engine's own library."""
    import rasterio  # noqa: PLC0415 - heavy; the client has them by then, workers not yet

    import pipeline  # noqa: PLC0415

    found = {"Python": platform.python_version(), "scenemask": pipeline.__version__, "GDAL": rasterio.__gdal_version__}
    found |= {name: str(importlib.import_module(name).__version__) for name in _PACKAGES}
    return found if engine is None or engine[0] in found else found | {engine[0]: _installed(engine[0])}


def _installed(library: str) -> str:
    """From its metadata: some libraries are no pleasure to import."""
    for name in (library, f"{library}-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "not installed"


def why_not(backend: str, device: str, precision: str) -> str | None:
    """Why this process cannot run a plan's engine, in a few words; None where it can."""
    import torch  # noqa: PLC0415

    from pipeline.model import has_fast_bfloat16  # noqa: PLC0415

    if device == "cuda" and not torch.cuda.is_available():
        return "the plan is for CUDA, and PyTorch finds no CUDA device there"
    if backend != "torch" and importlib.util.find_spec(backend) is None:
        return f"the plan is for {backend}, which is not installed there"
    if precision == "bfloat16" and (backend != "torch" or device != "cpu") and not has_fast_bfloat16(device):
        return f"the plan is for bfloat16, which its {'GPU' if device == 'cuda' else 'CPU'} does not compute"
    return None


def _leave_token(place: Place) -> str:
    """A file whose name nobody can guess, or has asked for before: no network disk remembers that it is missing."""
    token = f".seen-{secrets.token_hex(16)}"
    place.write(token, token.encode())
    return token


def _why_unseen(place: Place, token: str) -> str | None:
    try:
        found = place.read(token)
        if found is None:
            return f"{place} (what this run has left there is not there)"
        place.write(token, found)
    except (PipelineError, OSError) as error:
        return f"{place} ({_line(error)})"
    return None if found == token.encode() else f"{place} (another one has that path there)"


def _line(error: object) -> str:
    return str(error.what if isinstance(error, PipelineError) else error).partition("\n")[0]


def _refuse_other_packages(answers: Mapping[str, Answer], mine: Mapping[str, str], *, allow_skew: bool) -> None:
    differing: dict[tuple[str, str], list[str]] = defaultdict(list)
    for address, told in answers.items():
        for name, here in mine.items():
            there = told.versions.get(name, "unknown")
            if there != here and not (allow_skew and same_but_for_patch(here, there)):
                differing[name, there].append(f"{address} on {told.host}")
    if not differing:
        return
    width = max(len(name) for name, _ in differing)
    rows = [
        f"\n         {name:<{width}}  {mine[name]} here, {there} at {_named(where)}"
        for (name, there), where in differing.items()
    ]
    only_patches = all(same_but_for_patch(mine[name], there) for name, there in differing)
    raise UsageError(
        "workers have other packages than this process:" + "".join(rows),
        code="CL-012",
        title="Versions differ",
        fix="install the same versions everywhere"
        + (", or take these with --allow-version-skew" if only_patches else ""),
    )


def _named(workers: Sequence[str]) -> str:
    more = len(workers) - _MOST_NAMED
    return ", ".join(workers[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def same_but_for_patch(one: str, other: str) -> bool:
    """Whether two versions differ in what comes after the second number only, builds such as `+cpu` included."""
    first, second = (version.partition("+")[0].split(".")[:2] for version in (one, other))
    return first == second and all(part.isdecimal() for part in first)
