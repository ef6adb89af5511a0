"""Kubernetes manifests and the compose file, checked without a cluster."""

from __future__ import annotations

import functools
import re
from importlib import metadata, util
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from pipeline.cli.app import app
from tests.unit.deploy.deployment import OVERLAYS, ROOT, built, compose, pod_specs, written

BASES = ("data", "batch/base", "dask/base")
_NOT_RETRIED = {1, 2, 3, 4, 5, 6, 7}


def _validate(resource: dict[str, Any]) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    validator.validate(resource, validator.latest_version(), strict=True)


@functools.cache
def _crd(kind: str) -> dict[str, Any]:
    """The schema that the Dask operator installs for a kind."""
    if util.find_spec("dask_kubernetes") is None:
        pytest.skip("dask-kubernetes is not installed")
    name = f"/crds/{kind.lower()}.yaml"
    file = next(file for file in metadata.files("dask-kubernetes") or () if str(file).endswith(name))
    definition = yaml.load(Path(str(file.locate())).read_text(), yaml.CSafeLoader)  # a megabyte
    schema: dict[str, Any] = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def _pruned(value: Any, schema: dict[str, Any], where: str = "") -> list[str]:
    """Fields that the API server would drop in silence, because the schema does not know them."""
    if isinstance(value, list):
        return [
            found for i, item in enumerate(value) for found in _pruned(item, schema.get("items", {}), f"{where}[{i}]")
        ]
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return []
    known, free = schema.get("properties", {}), schema.get("additionalProperties")
    lost = [f"{where}.{key}" for key in value if key not in known and not free]
    return lost + [
        found for key in value if key in known for found in _pruned(value[key], known[key], f"{where}.{key}")
    ]


def _check(resource: dict[str, Any]) -> None:
    if not resource["apiVersion"].startswith("kubernetes.dask.org"):
        _validate(resource)
        return
    schema = _crd(resource["kind"])
    assert not [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(resource)]
    inside = {key: value for key, value in resource.items() if key == "spec"}
    assert not _pruned(inside, schema)
    for spec in pod_specs(resource):  # today's Kubernetes knows more than the operator's schema
        _validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec})
    service = resource["spec"]["scheduler"]["service"]
    _validate({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "service"}, "spec": service})


@pytest.mark.parametrize("base", BASES)
def test_bases_fit_the_schemas(base: str) -> None:
    for resource in written(base):
        _check(resource)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_fit_the_schemas_and_name_images_that_exist(overlay: str) -> None:
    resources = built(overlay)
    assert len(resources) == {"batch": 2, "dask": 3}[overlay.split("/", maxsplit=1)[0]]
    images = set()
    for resource in resources:
        _check(resource)
        images |= {container["image"] for spec in pod_specs(resource) for container in spec["containers"]}
    assert images == {"registry.example.com/scenemask:0.1.0" + ("-cuda" if overlay.endswith("gpu") else "")}


@pytest.mark.parametrize("group", ["batch", "dask"])
def test_the_gpu_overlay_asks_for_one_where_forwards_run(group: str) -> None:
    for resource in built(f"{group}/gpu"):
        for container in (container for spec in pod_specs(resource) for container in spec["containers"]):
            wanted = container["resources"]["limits"].get("nvidia.com/gpu")
            assert wanted == (None if container["name"] == "scheduler" else "1")
            if resource["kind"] == "Job":
                assert container["args"][-2:] == ["--device", "cuda"]


@pytest.mark.parametrize("base", BASES)
def test_pods_are_locked_down(base: str) -> None:
    for spec in (spec for resource in written(base) for spec in pod_specs(resource)):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 1000  # as the images have it
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
            mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in spec["volumes"]}
            assert set(mounted.values()) <= set(volumes)
            home = next(entry["value"] for entry in container["env"] if entry["name"] == "HOME")
            assert "emptyDir" in volumes[mounted["/tmp"]]
            assert "emptyDir" in volumes[mounted[home]]


def _documented_codes() -> set[int]:
    table = (ROOT / "docs" / "errors.md").read_text().split("\n## ")[0]
    return {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}


@pytest.mark.parametrize(("base", "kind"), [("batch/base", "FailIndex"), ("dask/base", "FailJob")])
def test_the_failure_policy_covers_each_exit_code_once(base: str, kind: str) -> None:
    job = next(resource for resource in written(base) if resource["kind"] == "Job")
    rules = job["spec"]["podFailurePolicy"]["rules"]
    actions: dict[int, str] = {}
    for rule in rules:
        for code in rule.get("onExitCodes", {}).get("values", []):
            assert code not in actions
            actions[code] = rule["action"]
    assert {actions.get(code, "Count") for code in (8, 137)} == {
        "Count"
    }  # 137: out of memory would be retried for ever
    assert actions[75] == actions[143] == "Ignore"
    assert {actions[code] for code in (2, 4)} == {"FailJob"}
    assert {actions[code] for code in (1, 3, 5, 7)} == {kind}
    unknown = _documented_codes() - set(actions) - {0, 8, 130}  # 130: nobody presses Ctrl-C there
    assert not unknown, f"docs/errors.md has exit codes that {base} does not treat: {unknown}"
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


def test_the_shares_of_the_batch_are_its_completions() -> None:
    (job,) = written("batch/base")
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    share = arguments[arguments.index("--share") + 1]
    assert share == f"$(JOB_COMPLETION_INDEX)/{job['spec']['completions']}"
    assert job["spec"]["completionMode"] == "Indexed"


def _scenemask_commands() -> list[list[str]]:
    """Every command line of `scenemask` in the manifests and the compose file."""
    commands = [compose()["services"]["job"]["command"]]
    for base in BASES:
        for resource in written(base):
            if resource["kind"] == "Job":
                commands += [container["args"] for spec in pod_specs(resource) for container in spec["containers"]]
    return commands


@pytest.mark.parametrize("arguments", _scenemask_commands(), ids=" ".join)
def test_commands_have_only_options_that_exist(arguments: list[str]) -> None:
    command = app.commands.get(arguments[0])
    if command is None:
        pytest.skip(f"this scenemask has no command {arguments[0]}")
    known = {name for parameter in command.get_params(click.Context(command)) for name in parameter.opts}
    used = {text for text in arguments if re.match(r"--?[a-z]", text)}
    if "--insecure-cluster" in used - known:
        pytest.skip("this scenemask has no --insecure-cluster")
    assert used <= known


def test_compose_services_are_locked_down_and_unreachable() -> None:
    content = compose()
    assert set(content["services"]) == {"scheduler", "worker", "job"}
    assert content["services"]["worker"]["deploy"]["replicas"] == 2
    assert all(network == {"internal": True} for network in content["networks"].values())
    for service in content["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert not service["user"].startswith(("0", "root"))
        assert "ports" not in service
        assert service["networks"] == list(content["networks"])
        assert service["deploy"]["resources"]["limits"]["memory"]
    insecure = "--insecure-cluster" in content["services"]["job"]["command"]
    assert insecure == any(text.startswith("tcp://") for text in content["services"]["job"]["command"])
