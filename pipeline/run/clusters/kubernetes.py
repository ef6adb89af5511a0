"""Workers as pods: what the Dask operator is asked for, over TLS, and taken away at the end.

The operator's own Python class talks plain TCP to the scheduler; so its resources are made here, and it does the rest.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import os
import secrets
import time
from typing import TYPE_CHECKING, Any

from distributed import Security

from pipeline.errors import InfrastructureError, UsageError
from pipeline.run.clusters.address import client_of
from pipeline.run.clusters.keys import CA, CERT, KEY, temporary_pem
from pipeline.run.clusters.tuning import HEALTH_ONLY, inherited, tuning
from pipeline.run.workers import tiles_in_flight, workers_wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from distributed import Client

    from pipeline.run.clusters.options import KubernetesOptions
    from pipeline.run.settings import SegmentSettings

_API = "kubernetes.dask.org/v1"
_KEYS = "/etc/scenemask-tls"
_COMM, _HEALTH = 8786, 8787
_SCALING = [*HEALTH_ONLY, "distributed.http.scheduler.api"]
"""The operator's probes ask for the scheduler's health; with a varying number of workers also how many are wanted."""


@contextlib.contextmanager
def pod_workers(
    options: KubernetesOptions, settings: SegmentSettings, *, device: str, check_stop: Callable[[], None]
) -> Iterator[Client]:
    """A client of a scheduler in a pod whose workers are pods; returns when the first worker is there.

    Args:
        options: Of the pods.
        settings: Of the run.
        device: What the workers compute on.
        check_stop: Called while waiting.

    Raises:
        UsageError: CF-044 kr8s is missing.
        InfrastructureError: CL-011 no worker came in time; CL-017 Kubernetes cannot be reached, or has no operator.
    """
    kr8s = _library()
    pem = temporary_pem()
    name = f"scenemask-{secrets.token_hex(4)}"
    deadline = time.monotonic() + options.wait
    with contextlib.ExitStack() as stack:
        try:
            api = kr8s.api(namespace=options.namespace)
            for manifest in manifests(options, settings, name=name, device=device, pem=pem):
                resource = kr8s.objects.object_from_spec(manifest, api=api, allow_unknown_type=True)
                resource.create()
                stack.callback(_delete, resource)
        except Exception as error:
            raise _no_kubernetes(error) from error
        address = stack.enter_context(_scheduler(kr8s, api, name, deadline, check_stop))
        client = stack.enter_context(_client(address, pem, deadline, check_stop))
        while not client.nthreads():
            _wait(deadline, check_stop, "no worker came")
        yield client


def _library() -> Any:
    try:
        importlib.import_module("cryptography")
        importlib.import_module("kr8s.objects")
        return importlib.import_module("kr8s")
    except ImportError as error:
        raise UsageError(
            f"--cluster kubernetes needs the package {error.name}, which is not installed",
            code="CF-044",
            title="Extra is missing",
            fix='pip install "scenemask[kubernetes]"',
        ) from error


def manifests(
    options: KubernetesOptions, settings: SegmentSettings, *, name: str, device: str, pem: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What is created, in order: keys, the cluster, and, where the number of workers varies, what scales it.

    Args:
        options: Of the pods.
        settings: Of the run.
        name: Of the cluster.
        device: What the workers compute on.
        pem: Names of key files and what they hold.
    """
    least = workers_wanted(settings)
    most = max(least, options.most_workers or 0)
    variables = inherited(tuning(options) | ({"distributed.scheduler.http.routes": _SCALING} if most > least else {}))
    meta: dict[str, Any] = {"labels": {"app.kubernetes.io/name": "scenemask"}}
    if options.namespace is not None:
        meta["namespace"] = options.namespace
    scheduler = _pod(options, name, "scheduler", _scheduler_command(), variables)
    scheduler["containers"][0] |= {
        "ports": [
            {"name": "tcp-comm", "containerPort": _COMM, "protocol": "TCP"},
            {"name": "http-dashboard", "containerPort": _HEALTH, "protocol": "TCP"},
        ],
        "readinessProbe": {"httpGet": {"port": "http-dashboard", "path": "/health"}, "periodSeconds": 2},
        "livenessProbe": {
            "httpGet": {"port": "http-dashboard", "path": "/health"},
            "initialDelaySeconds": 30,
            "periodSeconds": 20,
        },
    }
    worker = _pod(options, name, "worker", _worker_command(name, tiles_in_flight(settings, device)), variables)
    demand = {"cpu": str(options.cores), "memory": str(options.memory)}
    if options.gpus:
        demand["nvidia.com/gpu"] = str(options.gpus)
    worker["containers"][0]["resources"] = {"requests": demand, "limits": demand}
    if options.node_selector:
        worker["nodeSelector"] = dict(options.node_selector)
    made = [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {**meta, "name": f"{name}-tls"},
            "type": "Opaque",
            "data": {file: base64.b64encode(text.encode()).decode() for file, text in pem.items()},
        },
        {
            "apiVersion": _API,
            "kind": "DaskCluster",
            "metadata": {**meta, "name": name},
            "spec": {
                "scheduler": {"spec": scheduler, "service": _service(name)},
                "worker": {"replicas": least, "spec": worker},
            },
        },
    ]
    if most > least:
        scaler = {"cluster": name, "minimum": least, "maximum": most}
        made.append({"apiVersion": _API, "kind": "DaskAutoscaler", "metadata": {**meta, "name": name}, "spec": scaler})
    return made


def _pod(
    options: KubernetesOptions, name: str, part: str, command: list[str], variables: Mapping[str, str]
) -> dict[str, Any]:
    mounts = [{"name": "tls", "mountPath": _KEYS, "readOnly": True}]
    volumes: list[dict[str, Any]] = [{"name": "tls", "secret": {"secretName": f"{name}-tls", "defaultMode": 0o440}}]
    for number, (claim, path) in enumerate(options.claims.items()):
        mounts.append({"name": f"claim-{number}", "mountPath": path})
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
    container: dict[str, Any] = {
        "name": part,
        "image": options.image,
        "command": command,
        "env": [{"name": key, "value": value} for key, value in {**options.environment, **variables}.items()],
        "volumeMounts": mounts,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    if part == "worker" and options.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in options.secrets]
    pod: dict[str, Any] = {
        "containers": [container],
        "volumes": volumes,
        "securityContext": {"runAsNonRoot": True, "runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER},
        "automountServiceAccountToken": False,
    }
    if options.service_account is not None:
        pod |= {"serviceAccountName": options.service_account, "automountServiceAccountToken": True}
    return pod


_USER = 1000
"""The image's own."""


def _keys() -> list[str]:
    return [
        "--protocol", "tls",
        "--tls-ca-file", f"{_KEYS}/{CA}", "--tls-cert", f"{_KEYS}/{CERT}", "--tls-key", f"{_KEYS}/{KEY}",
    ]  # fmt: skip


def _scheduler_command() -> list[str]:
    ports = ["--port", str(_COMM), "--no-dashboard", "--dashboard-address", f":{_HEALTH}"]
    return ["python", "-m", "distributed.cli.dask_scheduler", *ports, *_keys()]


def _worker_command(name: str, threads: int) -> list[str]:
    return [
        "python", "-m", "distributed.cli.dask_worker", f"tls://{name}-scheduler:{_COMM}",
        "--name", "$(DASK_WORKER_NAME)",
        "--nthreads", str(threads), "--memory-limit", "0", "--no-dashboard", "--dashboard-address", "127.0.0.1:0",
        *_keys(),
    ]  # fmt: skip


def _service(name: str) -> dict[str, Any]:
    return {
        "type": "ClusterIP",
        "selector": {"dask.org/cluster-name": name, "dask.org/component": "scheduler"},
        "ports": [
            {"name": "tcp-comm", "protocol": "TCP", "port": _COMM, "targetPort": "tcp-comm"},
            {"name": "http-dashboard", "protocol": "TCP", "port": _HEALTH, "targetPort": "http-dashboard"},
        ],
    }


@contextlib.contextmanager
def _scheduler(kr8s: Any, api: Any, name: str, deadline: float, check_stop: Callable[[], None]) -> Iterator[str]:
    """Address of the scheduler: its service inside Kubernetes, a forwarded port on loopback outside."""
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        yield f"tls://{name}-scheduler.{api.namespace}:{_COMM}"
        return
    service = kr8s.objects.Service(f"{name}-scheduler", namespace=api.namespace, api=api)
    while not (service.exists() and service.ready_pods()):
        _wait(deadline, check_stop, "the scheduler did not start")
        with contextlib.suppress(kr8s.NotFoundError):
            service.refresh()
    with service.portforward(_COMM, local_port="auto") as port:
        yield f"tls://127.0.0.1:{port}"


@contextlib.contextmanager
def _client(address: str, pem: Mapping[str, str], deadline: float, check_stop: Callable[[], None]) -> Iterator[Client]:
    security = Security(
        require_encryption=True, tls_ca_file=pem[CA], tls_client_cert=pem[CERT], tls_client_key=pem[KEY]
    )
    while True:
        try:
            client = client_of(address, timeout_s=_TRY_S, security=security)
        except (OSError, TimeoutError):
            _wait(deadline, check_stop, f"no scheduler answers at {address}")
        else:
            break
    with client:
        yield client


_TRY_S = 5
_LOOK_S = 0.5


def _wait(deadline: float, check_stop: Callable[[], None], what: str) -> None:
    check_stop()
    if time.monotonic() > deadline:
        raise InfrastructureError(
            f"{what} in time",
            code="CL-011",
            title="No worker came",
            where="--cluster kubernetes",
            fix="look at `kubectl get pods -l app.kubernetes.io/name=scenemask` and their events; raise `wait` in the "
            "cluster's file if images or nodes take longer",
        )
    time.sleep(_LOOK_S)


def _delete(resource: Any) -> None:
    with contextlib.suppress(Exception):  # gone already, or Kubernetes is: nothing that could be done here
        resource.delete()


def _no_kubernetes(error: Exception) -> InfrastructureError:
    return InfrastructureError(
        f"the cluster cannot be made: {' '.join(str(error).split()) or type(error).__name__}",
        code="CL-017",
        title="Kubernetes does not answer",
        where="--cluster kubernetes",
        fix="check `kubectl auth can-i create daskclusters.kubernetes.dask.org`, and that Dask's operator is installed",
    )
