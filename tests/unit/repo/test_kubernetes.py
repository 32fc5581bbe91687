"""The manifests of deploy/kubernetes: valid, unprivileged, with the keys that each process may have."""

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
        "api": {"api-keys", "database"},
        "gateway": {"gateway-keys", "gateway-database"},
        "worker": {"worker-keys", "database"},
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


def test_a_gateway_connects_as_the_role_that_the_preparing_job_gives_its_rights() -> None:
    settings = {it["metadata"]["name"]: it["data"] for it in MANIFESTS if it["kind"] == "ConfigMap"}
    read = [it["configMapRef"]["name"] for it in PODS["gateway"]["containers"][0]["envFrom"]]
    assert read == ["evergrant", "gateway"]  # the last one wins
    url = settings["gateway"]["EVERGRANT_DATABASE_URL"]
    role = PODS["prepare"]["containers"][0]["args"][-1]
    assert url == settings["evergrant"]["EVERGRANT_DATABASE_URL"].replace("evergrant@", f"{role}@")
