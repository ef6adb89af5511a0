"""What Kubernetes is asked for: against its own schemas and the operator's. There is none here to run it.

So `stand_in_kubernetes` does, as far as that can be done by processes.
"""

from __future__ import annotations

import base64
import sys
from importlib import resources
from typing import TYPE_CHECKING, Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipeline.errors import InfrastructureError
from pipeline.run.cluster import connect
from pipeline.run.clusters.keys import temporary_pem
from pipeline.run.clusters.kubernetes import manifests
from pipeline.run.clusters.options import cluster_options
from pipeline.run.settings import make_settings
from tests.cluster.running import Known, can_mount, process
from tests.cluster.stand_in_kubernetes import Kubernetes
from tests.scenes import sha256

if TYPE_CHECKING:
    from pathlib import Path

FULL = {
    "kind": "kubernetes", "image": "registry.example.org/scenemask:0.1.0", "namespace": "maps", "workers": 3,
    "most_workers": 9, "cores": 8, "memory": "16GB", "gpus": 1, "claims": {"scenes": "/data", "out": "/out"},
    "environment": {"AWS_DEFAULT_REGION": "eu-central-1"}, "secrets": ["s3"], "service_account": "runner",
    "node_selector": {"pool": "gpu"},
}  # fmt: skip


def _made(folder: Path, options: dict[str, Any], **more: object) -> list[dict[str, Any]]:
    path = folder / "cluster.yaml"
    path.write_text(yaml.dump(options))
    settings = make_settings({"cluster": str(path), **more})
    return manifests(cluster_options(settings), settings, name="sm-1", device="cpu", pem=temporary_pem())


def _schema(kind: str) -> dict[str, Any]:
    """What the operator says of a resource, as its chart installs it."""
    folder = resources.files("dask_kubernetes.operator") / "deployment" / "helm" / "dask-kubernetes-operator" / "crds"
    crd = yaml.safe_load((folder / f"{kind.lower()}.yaml").read_text())
    schema: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


@pytest.mark.parametrize("options", [{"kind": "kubernetes"}, FULL], ids=["defaults", "full"])
def test_resources_are_valid(tmp_path: Path, options: dict[str, Any]) -> None:
    made = _made(tmp_path, options)
    kinds = [one["kind"] for one in made]
    assert kinds == ["Secret", "DaskCluster", *(["DaskAutoscaler"] if options is FULL else [])]
    kubernetes_validate.validate(made[0], "1.30", strict=True)
    for resource in made[1:]:
        jsonschema.validate(resource, _schema(resource["kind"]))
    spec = made[1]["spec"]
    for part in ("scheduler", "worker"):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec[part]["spec"]}
        kubernetes_validate.validate(pod, "1.30", strict=True)
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": spec["scheduler"]["service"]}
    kubernetes_validate.validate(service, "1.30", strict=True)


def test_pods_are_what_was_asked_for(tmp_path: Path) -> None:
    secret, cluster, scaler = _made(tmp_path, FULL)
    assert {one["metadata"].get("namespace") for one in (secret, cluster, scaler)} == {"maps"}
    assert scaler["spec"] == {"cluster": "sm-1", "minimum": 3, "maximum": 9}
    worker, scheduler = (cluster["spec"][part]["spec"] for part in ("worker", "scheduler"))
    assert cluster["spec"]["worker"]["replicas"] == 3
    container = worker["containers"][0]
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "16000000000", "nvidia.com/gpu": "1"}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/etc/scenemask-tls", "/data", "/out"}
    assert container["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert "envFrom" not in scheduler["containers"][0], "only workers read and write"
    assert worker["nodeSelector"] == {"pool": "gpu"}
    assert not any(option in scheduler["containers"][0]["command"] for option in ("--dashboard", "--jupyter"))
    assert [one["kind"] for one in _made(tmp_path, FULL, workers=20)] == ["Secret", "DaskCluster"], (
        "--workers beats the file"
    )


def test_t9_keys_are_in_the_secret_and_nowhere_else(tmp_path: Path) -> None:
    secret, cluster = _made(tmp_path, {"kind": "kubernetes"})
    key = base64.b64decode(secret["data"]["key.pem"]).decode()
    assert key.startswith("-----BEGIN PRIVATE KEY")
    assert key.splitlines()[1] not in yaml.dump(cluster)
    for part in ("scheduler", "worker"):
        assert "--tls-key" in cluster["spec"][part]["spec"]["containers"][0]["command"]


def test_without_kubernetes_the_run_ends_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InfrastructureError) as caught, connect(make_settings({"cluster": "kubernetes"})):
        pass
    assert caught.value.code == "CL-017"


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs root and unshare, for a name that leads to the scheduler")
def test_a_run_on_what_was_asked_for(known: Known, tmp_path: Path) -> None:
    """Real requests, and a real Dask cluster of the commands, keys and variables in them."""
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("kind: kubernetes\nworkers: 2\ncores: 2\nmemory: 2GB\nwait: 2 min")
    out, log = tmp_path / "out", tmp_path / "run.log"
    with Kubernetes(tmp_path) as kubernetes:
        command = ["-c", "from pipeline.cli import main; main()", "segment", str(known.scene), "-m", str(known.model)]
        command += ["-o", str(out), "--cluster", str(cluster)]
        command += [f"--{name}={value}" for name, value in known.options.items()]
        inside = ["unshare", "-m", "sh", "-c", f'mount --bind "{kubernetes.hosts}" /etc/hosts && exec "$@"', "sh"]
        variables = {"KUBECONFIG": kubernetes.kubeconfig, "KUBERNETES_SERVICE_HOST": "127.0.0.1"}
        with process([*inside, sys.executable, *command], log, **variables) as run:
            run.wait(timeout=200)
        assert run.returncode == 0, log.read_text()[-3000:]
        assert kubernetes.resources == {}, "all that was made is taken away"
        assert kubernetes.health == 200
        kinds = [line.split("/")[-1] for line in kubernetes.requests if line.startswith("POST")]
        assert kinds == ["secrets", "daskclusters"]
        assert all("/namespaces/maps/" in line for line in kubernetes.requests if line.startswith("POST"))
    assert sha256(out / "mask.tif") == known.sha256
