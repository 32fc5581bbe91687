"""The manifests of deploy/kubernetes: valid, unprivileged, with the keys that each process may have. Those of
deploy/key-services/kubernetes have no key file at all."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from evergrant_server import __version__
from evergrant_server.settings import Settings

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/kubernetes"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
MANIFESTS: list[dict[str, Any]] = [
    it for name in KUSTOMIZATION["resources"] for it in yaml.safe_load_all((FOLDER / name).read_text())
]
PODS: dict[str, dict[str, Any]] = {
    it["metadata"]["name"]: it["spec"]["template"]["spec"]
    for it in MANIFESTS
    if "template" in it.get("spec", {})
}


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda it: f"{it['kind']}/{it['metadata']['name']}")
def test_a_manifest_follows_the_schema_of_kubernetes(manifest: dict[str, Any]) -> None:
    import kubernetes_validate  # a second, which each process of a run would pay that only collects this

    kubernetes_validate.validate(manifest, "1.34", strict=True)


def test_the_kustomization_has_every_file_and_this_version() -> None:
    files = {it.name for it in FOLDER.iterdir()} - {"kustomization.yaml"}
    assert files == set(KUSTOMIZATION["resources"])
    assert [it["newTag"] for it in KUSTOMIZATION["images"]] == [__version__]


def test_only_workers_and_the_preparing_job_have_the_full_key_file() -> None:
    secrets = {
        name: {it["secret"]["secretName"] for it in pod["volumes"] if "secret" in it}
        for name, pod in PODS.items()
    }
    assert secrets == {
        "prepare": {"worker-keys", "database"},
        "api": {"api-keys", "api-database"},
        "gateway": {"gateway-keys", "gateway-database"},
        "worker": {"worker-keys", "worker-database"},
    }


@pytest.mark.parametrize("name", PODS)
def test_pods_are_unprivileged(name: str) -> None:
    pod = PODS[name]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_every_variable_is_a_setting() -> None:
    named = {
        *(name for it in MANIFESTS if it["kind"] == "ConfigMap" for name in it["data"]),
        *(it["name"] for pod in PODS.values() for one in pod["containers"] for it in one["env"]),
    }
    known = {f"EVERGRANT_{name.upper()}" for name in Settings.model_fields} | {"OTEL_SERVICE_NAME"}
    assert named <= known


@pytest.mark.parametrize("name", ["worker", "api", "gateway"])
def test_a_process_connects_as_the_role_that_the_preparing_job_gives_its_rights(name: str) -> None:
    settings = {it["metadata"]["name"]: it["data"] for it in MANIFESTS if it["kind"] == "ConfigMap"}
    read = [it["configMapRef"]["name"] for it in PODS[name]["containers"][0]["envFrom"]]
    assert read == ["evergrant", name]  # the last one wins
    options = dict(it.split("=") for it in PODS["prepare"]["containers"][0]["args"][2:])
    role = options[f"--{name}-role"]
    of_owner = settings["evergrant"]["EVERGRANT_DATABASE_URL"]
    assert settings[name]["EVERGRANT_DATABASE_URL"] == of_owner.replace("evergrant@", f"{role}@")


# --- with a key service ---------------------------------------------------------------------

OVERLAY = ROOT / "deploy/key-services/kubernetes"


def patched() -> list[dict[str, Any]]:
    """The manifests as the overlay's patches (RFC 6902: `add` and `remove`) leave them, and its own."""
    kustomization = yaml.safe_load((OVERLAY / "kustomization.yaml").read_text())
    base, *files = kustomization["resources"]
    assert (OVERLAY / base).resolve() == FOLDER
    manifests = copy.deepcopy(MANIFESTS)
    for entry in kustomization["patches"]:
        target = entry["target"]
        targets = [
            manifest
            for manifest in manifests
            if manifest["kind"] == target["kind"]
            and re.fullmatch(target["name"], manifest["metadata"]["name"])
        ]
        assert targets, target
        for manifest in targets:
            for change in yaml.safe_load(entry["patch"]):
                _apply(manifest, change)
    accounts = [manifest for name in files for manifest in yaml.safe_load_all((OVERLAY / name).read_text())]
    return [*manifests, *accounts]


def _apply(manifest: Any, change: dict[str, Any]) -> None:
    *path, last = (part for part in change["path"].split("/")[1:])
    parent = manifest
    for part in path:
        parent = parent[int(part) if isinstance(parent, list) else part]
    if change["op"] == "remove":
        del parent[int(last) if isinstance(parent, list) else last]
    elif last == "-":
        parent.append(copy.deepcopy(change["value"]))
    else:
        assert change["op"] == "add"
        assert last not in parent
        parent[last] = change["value"]


def _named(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return {manifest["metadata"]["name"]: manifest for manifest in manifests if manifest["kind"] == kind}


def test_what_the_patches_leave_follows_the_schema_of_kubernetes() -> None:
    import kubernetes_validate

    for manifest in patched():
        kubernetes_validate.validate(manifest, "1.34", strict=True)


def test_with_a_key_service_no_pod_has_a_key_file_and_each_role_an_account_of_its_own() -> None:
    manifests = patched()
    accounts = dict.fromkeys(_named(manifests, "ServiceAccount"), 0)
    for manifest in manifests:
        pod = manifest.get("spec", {}).get("template", {}).get("spec")
        if pod is None:
            continue
        name = manifest["metadata"]["name"]
        assert pod["serviceAccountName"] == ("worker" if name == "prepare" else name)
        accounts[pod["serviceAccountName"]] += 1
        secrets = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
        assert secrets == {"database" if name == "prepare" else f"{name}-database"}
        volumes = {volume["name"] for volume in pod["volumes"]} | {"journal"}
        for container in (*pod["initContainers"], *pod["containers"]):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        before = [container["name"] for container in pod["initContainers"]]
        assert before == (["journal-folder"] if name == "worker" else [])
    assert accounts == {"worker": 2, "api": 1, "gateway": 1}
    settings = _named(manifests, "ConfigMap")["evergrant"]["data"]
    assert "{purpose}" in settings["EVERGRANT_KEY_SERVICE"]


def test_each_role_reaches_the_key_service_and_nothing_else_more() -> None:
    before, after = (_named(manifests, "NetworkPolicy") for manifests in (MANIFESTS, patched()))
    ways = {
        name: len(policy["spec"].get("egress", [])) - len(before[name]["spec"].get("egress", []))
        for name, policy in after.items()
    }
    assert ways == {"api": 1, "gateway": 1, "worker": 1, "prepare": 1}
