"""Options of each kind of cluster: frozen values, read from `configs/cluster/*.yaml` or a file of the user's."""

from __future__ import annotations

import functools
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UsageError
from pipeline.quantities import parse_bytes, parse_seconds, sentence, unknown_key
from pipeline.yaml_file import read_yaml

if TYPE_CHECKING:
    from pipeline.run.settings import SegmentSettings

Seconds = Annotated[int, BeforeValidator(parse_seconds)]
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(ge=2**28)]
AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]
_PROTOCOLS = ("tcp", "tls")


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LocalOptions(_Options):
    """Workers of this machine, on its cores."""

    kind: Literal["local"] = "local"
    workers: int = Field(default=1, ge=1)
    """One runs in the process of the command; more are processes."""


class CudaOptions(_Options):
    """Worker processes of this machine, each of which sees one GPU."""

    kind: Literal["cuda"] = "cuda"
    workers: int = Field(default=1, ge=1)
    """For each GPU."""


class Patience(_Options):
    """How long silence is put up with."""

    connect_timeout: Seconds = Field(default=30, ge=1)
    """A connection that is not there after this has failed."""
    tcp_timeout: Seconds = Field(default=30, ge=11)
    """A connection whose other end has not answered for this long is dead. Linux asks ten times: 11 s at least."""


class AddressOptions(Patience):
    """A scheduler that runs already, and is left running."""

    kind: Literal["address"] = "address"
    address: str
    """`tls://host:port`, or `tcp://host:port` on this machine."""
    ca: AbsolutePath | None = None
    """Certificate of the authority that both sides trust."""
    cert: AbsolutePath | None = None
    """Certificate of this client."""
    key: AbsolutePath | None = None
    """Its private key."""
    connect_timeout: Seconds = Field(default=10, ge=1)
    """A scheduler that does not answer for this long is not there."""
    cores: int | None = Field(default=None, ge=1)
    """Cores of a worker, hence threads of a forward; those of this machine if not given."""

    @model_validator(mode="after")
    def _possible(self) -> AddressOptions:
        protocol, _, rest = self.address.partition("://")
        if protocol not in _PROTOCOLS or not rest:
            msg = f"address {self.address!r} is neither tcp://host:port nor tls://host:port"
            raise ValueError(msg)
        given = [name for name in ("ca", "cert", "key") if getattr(self, name) is not None]
        if given and len(given) < 3:  # noqa: PLR2004
            msg = f"ca, cert and key belong together; only {' and '.join(given)} given"
            raise ValueError(msg)
        if given and protocol != "tls":
            msg = f"ca, cert and key are for tls://, the address is {self.address!r}"
            raise ValueError(msg)
        return self

    @property
    def exposed(self) -> bool:
        """Whether others could read or send what goes over the wire: no TLS, and more than this machine."""
        return self.address.startswith("tcp://") and not _is_loopback(self.address)


class StartedOptions(Patience):
    """Workers on other hosts that are started for the run, and ended with it."""

    workers: int = Field(default=2, ge=1)
    """Workers that are kept: a lost one is replaced."""
    most_workers: int | None = Field(default=None, ge=1)
    """As many while there is work for them; `workers` if not given."""
    cores: int = Field(default=4, ge=1)
    """Cores of a worker, hence threads of a forward."""
    memory: Bytes = 4_000_000_000
    """Memory of a worker, asked of the cluster."""
    worker_ttl: Seconds = Field(default=60, ge=5)
    """A worker that has not been heard of for this long is given up; its tiles go to others."""
    wait: Seconds = Field(default=3600, ge=1)
    """For the first worker, as queues may be long; then the run ends with CL-011."""

    @model_validator(mode="after")
    def _enough(self) -> StartedOptions:
        if self.most_workers is not None and self.most_workers < self.workers:
            msg = f"most_workers {self.most_workers} is less than workers {self.workers}"
            raise ValueError(msg)
        return self


class JobQueueOptions(StartedOptions):
    """Workers as jobs of a batch system, one each."""

    kind: Literal["slurm", "pbs", "lsf", "sge"] = "slurm"
    queue: str | None = None
    """Partition or queue; the batch system's default if not given."""
    account: str | None = None
    """What is charged (`-A`, `-P`)."""
    walltime: Seconds = Field(default=3600, ge=60)
    """Time limit of a job; the run may be longer."""
    lifetime_margin: Seconds = Field(default=300, ge=0)
    """A worker ends itself this long before its walltime, its tiles finished; another job takes its place."""
    lifetime_stagger: Seconds = Field(default=120, ge=0)
    """By up to as much earlier, at random, so that they do not all end at once."""
    interface: str | None = None
    """Network interface of scheduler and workers, such as `ib0`; how this machine is reached if not given."""
    directives: tuple[str, ...] = ()
    """Further lines of the job's header, such as `--gres=gpu:1`."""
    prologue: tuple[str, ...] = ()
    """Shell lines before the worker starts, such as `module load cuda`."""
    python: str | None = None
    """Python of the workers; the one that runs the command if not given."""
    local_directory: str | None = None
    """Disk of each node for what Dask puts down; the system's temporary folder if not given."""
    log_directory: AbsolutePath | None = None
    """Output of the jobs; in the run's private folder if not given, and removed with it after success."""

    @model_validator(mode="after")
    def _ends_in_time(self) -> JobQueueOptions:
        if self.lifetime_margin + 2 * self.lifetime_stagger >= self.walltime:
            msg = (
                f"walltime {self.walltime} s leaves no time for work: lifetime_margin {self.lifetime_margin} s and "
                f"twice lifetime_stagger {self.lifetime_stagger} s must be less"
            )
            raise ValueError(msg)
        return self


class KubernetesOptions(StartedOptions):
    """Workers as pods, started by the Dask operator."""

    kind: Literal["kubernetes"] = "kubernetes"
    image: str = "scenemask"
    """Image of scheduler and workers: with scenemask, in the versions of this client."""
    namespace: str | None = None
    """That of the current context if not given."""
    gpus: int = Field(default=0, ge=0)
    """`nvidia.com/gpu` of a worker."""
    claims: dict[str, str] = {}
    """Persistent volume claims and where they are mounted; output and scene must be at the same path everywhere."""
    environment: dict[str, str] = {}
    """Variables of scheduler and workers. Secrets do not belong here: use `secrets`."""
    secrets: tuple[str, ...] = ()
    """Kubernetes Secrets whose keys become variables of the workers, such as credentials of an object store."""
    service_account: str | None = None
    """Of the pods."""
    node_selector: dict[str, str] = {}
    """Labels of the nodes that workers may take."""


Options = LocalOptions | CudaOptions | AddressOptions | JobQueueOptions | KubernetesOptions
KINDS: dict[str, type[_Options]] = {
    "local": LocalOptions,
    "cuda": CudaOptions,
    "slurm": JobQueueOptions,
    "pbs": JobQueueOptions,
    "lsf": JobQueueOptions,
    "sge": JobQueueOptions,
    "kubernetes": KubernetesOptions,
    "address": AddressOptions,
}
NAMES = tuple(name for name in KINDS if name != "address")
"""What `--cluster` takes by name."""


def cluster_options(settings: SegmentSettings) -> Any:
    """The options behind `--cluster`: a kind with its defaults, an address, or a file.

    Raises:
        UsageError: CF-001, CF-003, CF-004 the file cannot be read; CF-040 it is wrong.
    """
    name = settings.cluster
    if is_file(name):
        path = Path(name)
        changed = path.stat().st_mtime_ns if path.is_file() else 0
        return _of_file(path, changed)
    if "://" in name:
        return make_options({"kind": "address", "address": name}, where=f"--cluster {name}")
    return make_options({"kind": name}, where=f"--cluster {name}")


def is_file(name: str) -> bool:
    """Whether `--cluster` names a settings file."""
    return name.endswith((".yaml", ".yml"))


def absolute_file(name: str) -> str:
    """A file's name as seen from any folder: a run may be continued from another one. Others stay as they are."""
    return str(Path(name).absolute()) if is_file(name) else name


@functools.lru_cache(maxsize=8)
def _of_file(path: Path, _changed: int) -> Any:
    given = {str(key).replace("-", "_"): value for key, value in read_yaml(path).items() if value is not None}
    return make_options(given, where=str(path))


def make_options(given: dict[str, Any], *, where: str) -> Any:
    """Validated options.

    Args:
        given: `kind`, and what differs from its defaults.
        where: Named in errors.

    Raises:
        UsageError: CF-040 with every problem at once.
    """
    kind = str(given.get("kind", ""))
    model = KINDS.get(kind)
    if model is None:
        raise _wrong([f"kind {kind!r} is not one of {', '.join(KINDS)}" if kind else "no kind"], where)
    known = model.model_fields
    problems = [unknown_key(key, known) for key in given if key not in known]
    try:
        made = model(**{key: value for key, value in given.items() if key in known})
    except ValidationError as error:
        problems += [sentence(detail) for detail in error.errors()]
    if problems:
        raise _wrong(problems, where)
    return made


def _wrong(problems: list[str], where: str) -> UsageError:
    return UsageError(
        "; ".join(problems),
        code="CF-040",
        title="Cluster settings are wrong",
        where=where,
        fix="configs/cluster/ has a file for each kind with every option explained",
    )


def check_cluster(settings: SegmentSettings) -> None:
    """Refuse what can be seen to be wrong before anything is opened.

    Raises:
        UsageError: CF-040 wrong options; CF-041 a scheduler that others could reach, without encryption; CF-042 files
            for TLS are missing; CF-043 the patch's memory is more than a worker has; CF-005 no GPU is wanted of GPUs.
    """
    options = cluster_options(settings)
    if isinstance(options, AddressOptions):
        _check_address(options, settings)
    if isinstance(options, CudaOptions) and settings.device == "cpu":
        raise UsageError(
            "cluster `cuda` has a worker for each GPU, and device `cpu` uses none",
            code="CF-005",
            title="Setting is wrong",
            where=settings.cluster,
            fix="leave out --device cpu, or give --cluster local",
        )
    if isinstance(options, StartedOptions) and (settings.memory or 0) > options.memory:
        raise UsageError(
            f"--memory {settings.memory} bytes is more than the {options.memory} bytes that a worker asks for",
            code="CF-043",
            title="Workers have too little memory",
            where=settings.cluster,
            fix="give less --memory, or more `memory` in the cluster's file",
        )


def _check_address(options: AddressOptions, settings: SegmentSettings) -> None:
    if options.exposed and not settings.insecure_cluster:
        raise UsageError(
            f"{options.address} is not encrypted and not on this machine: whoever reaches it can run programs as you",
            code="CF-041",
            title="Cluster is not secure",
            where=settings.cluster,
            fix="start it with TLS and give a tls:// address (configs/cluster/address.yaml), or insist with "
            "--insecure-cluster on a network that you trust",
        )
    missing = [str(path) for path in (options.ca, options.cert, options.key) if path is not None and not path.is_file()]
    if missing:
        raise UsageError(
            f"no such file: {', '.join(missing)}",
            code="CF-042",
            title="TLS files are missing",
            where=settings.cluster,
            fix="give paths of ca, cert and key in PEM form; relative ones start at the current folder",
        )


def _is_loopback(address: str) -> bool:
    """Whether an address is certainly one of this machine: by number or as `localhost`, never by asking for a name."""
    host = address.partition("://")[2].rpartition(":")[0] or address.partition("://")[2]
    host = host.strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
