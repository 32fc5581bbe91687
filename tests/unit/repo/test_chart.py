"""The Helm chart: deploy/kubernetes is rendered from it, its shapes follow the schemas of three versions of
Kubernetes, and its values are checked."""

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.manifests import CHART, FOLDER, ROOT, helm, manifests, rendered
from evergrant_server import __version__
from tests.unit.repo.test_kubernetes import patched

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
_SCALING = {"enabled": True, "minReplicas": 3, "maxReplicas": 9, "cpuPercent": 60}
_POD = {
    "autoscaling": _SCALING,
    "podAnnotations": {"example.com/team": "identity"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    "settings": {"EVERGRANT_LOG_LEVEL": "DEBUG"},
}
EVERYTHING: dict[str, Any] = {
    "image": {"repository": "registry.example.com/evergrant", "tag": "0.1.0-1", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "registry"}],
    "otlp": {"endpoint": "http://otel-collector.observability:4318"},
    **dict.fromkeys(("api", "gateway"), _POD),
    "worker": _POD | {"journal": {"storageClassName": "fast"}},
    "networkPolicy": {
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}],
        "scrapeFrom": [{"namespaceSelector": {}}],
        "database": {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]},
        "more": [{"ports": [{"port": 9000}]}],
    },
    "ingress": {"enabled": True, "gatewayHost": "calls.example.com", "annotations": {"example.com/a": "b"}},
    **{name: {"enabled": True} for name in ("serviceMonitor", "prometheusRule", "dashboard")},
    "docsUrl": "https://docs.example.com/evergrant",
    "deliver": {
        **{"enabled": True, "namespace": "reports", "appId": "app_01"},
        "secrets": ["report-github", "report-github-token"],
    },
}
KEY_SERVICE = "aws-kms:arn:aws:kms:eu-central-1:111122223333:alias/evergrant-{purpose}"
SHAPES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "everything": EVERYTHING,
    "without gateways": {"gateway": {"enabled": False}, "networkPolicy": {"enabled": False}},
    "with a key service": {
        "keyService": {"url": KEY_SERVICE},
        "worker": {"serviceAccountAnnotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/worker"}},
    },
}
OF_OPERATORS = {"ServiceMonitor", "PrometheusRule"}  # whose schemas a cluster brings


def program() -> str:
    binary = helm()
    if binary is None:
        pytest.skip("no helm: neither unpacked nor on PATH (bash requirements/helm.sh VENV)")
    return binary


def chart(tmp_path: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return [
        manifest for manifest in yaml.safe_load_all(rendered(program(), "--values", str(file))) if manifest
    ]


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {manifest["metadata"]["name"]: manifest for manifest in documents if manifest["kind"] == kind}


@cache
def versions() -> list[str]:
    """The newest three of which the schemas are here."""
    import kubernetes_validate

    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    minors = {int(manifest.name.split(".")[1]) for manifest in folder.glob("v1.*")}
    return [f"1.{minor}" for minor in sorted(minors)[-3:]]


def test_the_plain_manifests_are_rendered_from_the_chart() -> None:
    files = manifests(program())
    assert {name: (FOLDER / name).read_text(encoding="utf-8") for name in files} == files, (
        "run: make manifests"
    )
    kept = {"kustomization.yaml", "namespace.yaml"}
    assert files.keys() | kept == {file.name for file in FOLDER.iterdir()}


def test_the_chart_is_of_this_version() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert about["appVersion"] == about["version"] == __version__


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_follows_the_schemas_of_three_versions(shape: str, tmp_path: Path) -> None:
    import kubernetes_validate

    documents = chart(tmp_path, SHAPES[shape])
    assert len(versions()) == 3
    for version in versions():
        for document in documents:
            if document["kind"] not in OF_OPERATORS:
                kubernetes_validate.validate(document, version, strict=True)
    command = [program(), "lint", "--strict", str(CHART), "--values", str(tmp_path / "values.yaml")]
    linted = subprocess.run(command, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_a_hook_migrates_before_everything_else_with_settings_of_its_own(tmp_path: Path) -> None:
    """A hook runs before the chart's ConfigMap is there, and with an upgrade before it is changed."""
    documents = chart(tmp_path, EVERYTHING)
    job = of_kind(documents, "Job")["prepare"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert "envFrom" not in container
    settings = {manifest["name"]: manifest["value"] for manifest in container["env"]}
    assert settings.items() >= of_kind(documents, "ConfigMap")["evergrant"]["data"].items()
    assert settings["OTEL_EXPORTER_OTLP_ENDPOINT"] == EVERYTHING["otlp"]["endpoint"]
    hooked = [
        manifest["kind"]
        for manifest in documents
        if "helm.sh/hook" in manifest["metadata"].get("annotations", {})
    ]
    assert hooked == ["Job"]


def test_a_url_names_every_server_of_a_database_with_standbys(tmp_path: Path) -> None:
    database = {"host": "db-a", "standbys": ["db-b:5433"], "parameters": "sslmode=verify-full"}
    configured = of_kind(chart(tmp_path, {"database": database}), "ConfigMap")
    urls = {each["data"].get("EVERGRANT_DATABASE_URL") for each in configured.values()}
    assert (
        "postgresql+asyncpg://evergrant_api@/evergrant?host=db-a&host=db-b:5433&sslmode=verify-full" in urls
    )


def test_a_change_of_settings_replaces_the_pods_that_read_them(tmp_path: Path) -> None:
    def seen(values: dict[str, Any]) -> dict[str, str]:
        documents = chart(tmp_path, values)
        pods = of_kind(documents, "Deployment") | of_kind(documents, "StatefulSet")
        return {
            name: manifest["spec"]["template"]["metadata"]["annotations"]["evergrant/settings"]
            for name, manifest in pods.items()
        }

    before, after = seen({}), seen({"worker": {"settings": {"EVERGRANT_LOG_LEVEL": "DEBUG"}}})
    assert {name for name in before if before[name] != after[name]} == {"worker"}
    for_all = seen({"settings": {"EVERGRANT_LOG_LEVEL": "DEBUG"}})
    assert all(before[name] != for_all[name] for name in before)


def test_each_role_has_an_account_at_the_key_service_and_the_hook_one_of_its_own(tmp_path: Path) -> None:
    """A hook's account is made anew at each upgrade, which would end the tokens of running workers."""
    documents = chart(tmp_path, SHAPES["with a key service"])
    accounts = of_kind(documents, "ServiceAccount")
    pods = [
        manifest["spec"]["template"]["spec"] | manifest["metadata"]
        for kind in ("Job", "Deployment", "StatefulSet")
        for manifest in of_kind(documents, kind).values()
    ]
    assert {pod["name"]: pod["serviceAccountName"] for pod in pods} == {name: name for name in accounts}
    hooked = {
        name for name, manifest in accounts.items() if "helm.sh/hook" in manifest["metadata"]["annotations"]
    }
    assert hooked == {"prepare"}
    bound = SHAPES["with a key service"]["worker"]["serviceAccountAnnotations"].items()
    assert {
        name for name, manifest in accounts.items() if manifest["metadata"]["annotations"].items() >= bound
    } == {
        "worker",
        "prepare",
    }


def test_an_autoscaler_has_the_number_of_pods_to_itself(tmp_path: Path) -> None:
    documents = chart(tmp_path, EVERYTHING)
    scaled = of_kind(documents, "HorizontalPodAutoscaler")
    assert scaled.keys() == of_kind(documents, "PodDisruptionBudget").keys() == {"api", "gateway", "worker"}
    for name, scaler in scaled.items():
        target = of_kind(documents, scaler["spec"]["scaleTargetRef"]["kind"])[name]
        assert "replicas" not in target["spec"]


def test_every_role_has_a_policy_of_what_it_may_reach(tmp_path: Path) -> None:
    policies = of_kind(chart(tmp_path, EVERYTHING), "NetworkPolicy")
    assert policies.keys() - {"deliver"} == {"api", "gateway", "worker", "prepare"}
    ports = {
        name: {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
        for name, policy in policies.items()
    }
    del policies["deliver"]  # no process of the server
    shared = {53, 5432, 7233, 4318}
    assert ports["prepare"] == shared
    assert ports["api"] == shared | {6379}
    assert ports["gateway"] == ports["worker"] == shared | {443, 8443, 9000}
    for policy in policies.values():
        (database,) = [rule for rule in policy["spec"]["egress"] if {"port": 5432} in rule["ports"]]
        assert database["to"] == EVERYTHING["networkPolicy"]["database"]["to"]


def test_the_operator_reads_no_other_secret_by_name_and_reaches_two_servers(tmp_path: Path) -> None:
    documents = [
        manifest
        for manifest in chart(tmp_path, EVERYTHING)
        if manifest["metadata"].get("namespace") == "reports"
    ]
    (role,) = of_kind(documents, "Role").values()
    by_name = [rule for rule in role["rules"] if "resourceNames" in rule]
    assert [(rule["resourceNames"], rule["verbs"]) for rule in by_name] == [
        (EVERYTHING["deliver"]["secrets"], ["get", "patch", "delete"])
    ]
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {
        *("get", "list", "watch", "create", "patch", "delete")
    }
    (policy,) = of_kind(documents, "NetworkPolicy").values()
    assert {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]} == {53, 443, 6443}
    assert "ingress" not in policy["spec"]
    (deployment,) = of_kind(documents, "Deployment").values()
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"evergrant-client:{__version__}"
    settings = {setting["name"]: setting["value"] for setting in container["env"]}
    (source,) = deployment["spec"]["template"]["spec"]["volumes"][0]["projected"]["sources"]
    assert (
        settings["EVERGRANT_URL"]
        == source["serviceAccountToken"]["audience"]
        == "https://evergrant.example.com"
    )


def test_every_container_asks_for_memory_and_is_probed(tmp_path: Path) -> None:
    documents = chart(tmp_path, {})
    for kind in ("Job", "Deployment", "StatefulSet"):
        for manifest in of_kind(documents, kind).values():
            pod = manifest["spec"]["template"]["spec"]
            for container in (*pod["initContainers"], *pod["containers"]):
                assert container["resources"]["requests"]["memory"]
                assert container["resources"]["limits"]["memory"]
            if kind != "Job":
                assert {"startupProbe", "livenessProbe", "readinessProbe"} <= pod["containers"][0].keys()


def test_prometheus_finds_every_process_and_the_rules_lead_to_your_pages(tmp_path: Path) -> None:
    documents = chart(tmp_path, EVERYTHING)
    monitor = of_kind(documents, "ServiceMonitor")["evergrant"]["spec"]
    services = of_kind(documents, "Service")
    scraped = {manifest["port"] for manifest in monitor["endpoints"]}
    for name, service in services.items():
        labels = service["metadata"]["labels"]
        assert labels.items() >= monitor["selector"]["matchLabels"].items(), name
        assert labels[monitor["jobLabel"]] == "evergrant", "the job of alerts and dashboard"
        assert scraped & {port["name"] for port in service["spec"]["ports"]}, name
    rules = of_kind(documents, "PrometheusRule")["evergrant"]["spec"]
    text = (CHART / "files/alerts.yaml").read_text(encoding="utf-8")
    assert rules == yaml.safe_load(text.replace("https://evergrant.example.com/docs", EVERYTHING["docsUrl"]))
    board = of_kind(documents, "ConfigMap")["evergrant-dashboard"]["data"]["evergrant.json"]
    assert board == (CHART / "files/dashboard.json").read_text(encoding="utf-8")


def test_with_a_key_service_the_chart_is_what_the_overlay_makes_of_the_manifests(tmp_path: Path) -> None:
    values = {"plain": True, "keyService": {"url": KEY_SERVICE}}
    ours, theirs = (
        {
            (manifest["kind"], manifest["metadata"]["name"]): _without_nothing(manifest)
            for manifest in documents
        }
        for documents in (chart(tmp_path, values), patched())
    )
    theirs.pop(("Namespace", "evergrant"))
    assert ours == theirs


def _without_nothing(value: Any) -> Any:
    """Without empty lists and objects, which say what their absence says."""
    if isinstance(value, dict):
        kept = {name: _without_nothing(manifest) for name, manifest in value.items()}
        return {name: manifest for name, manifest in kept.items() if manifest not in ({}, [])}
    return [_without_nothing(manifest) for manifest in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"settings": {"EVERGRANT_DATABASE_PASSWORD": "hush"}}, "EVERGRANT_DATABASE_PASSWORD"),
        ({"settings": {"DATABASE_URL": "x"}}, "DATABASE_URL"),
        ({"api": {"settings": {"EVERGRANT_DATABASE_URL": "postgresql://x"}}}, "EVERGRANT_DATABASE_URL"),
        ({"api": {"replicas": 0}}, "/api/replicas"),
        ({"deliver": {"enabled": True}}, "/deliver/appId"),
        ({"worker": {"journal": {"accessMode": "ReadWriteMany"}}}, "/worker/journal/accessMode"),
        ({"gatway": {"enabled": False}}, "gatway"),
        ({"database": {"roles": {"api": "x; DROP TABLE app"}}}, "/database/roles/api"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        chart(tmp_path, values)
    assert named in refused.value.stderr


def test_the_guides_values_are_enough(tmp_path: Path) -> None:
    page = (ROOT / "docs/guide/kubernetes.md").read_text(encoding="utf-8")
    (values,) = re.findall(r"```yaml\n(# values.yaml of yours\n.*?)```", page, re.DOTALL)
    documents = chart(tmp_path, yaml.safe_load(values))
    settings = of_kind(documents, "ConfigMap")["evergrant"]["data"]
    assert settings["EVERGRANT_GATEWAY_PUBLIC_URL"] == "https://calls.example.com"
    assert settings["EVERGRANT_DATABASE_URL"].endswith("@db.internal/evergrant?sslmode=verify-full")
    rules = {rule["host"] for rule in of_kind(documents, "Ingress")["evergrant"]["spec"]["rules"]}
    assert rules == {"evergrant.example.com", "calls.example.com"}


def test_every_value_is_documented_and_in_the_schema() -> None:
    """In its file by the comment above a group or beside a line; the schema knows each name and no other."""
    assert SCHEMA["properties"].keys() - {"global"} == VALUES.keys() == set(SCHEMA["required"])
    groups = re.split(r"\n\n", (CHART / "values.yaml").read_text(encoding="utf-8"))
    silent = [group.splitlines()[0] for group in groups if "#" not in group]
    assert silent == []


def test_external_secrets_are_those_that_the_chart_names() -> None:
    documents = list(
        yaml.safe_load_all((ROOT / "deploy/helm/external-secrets.yaml").read_text(encoding="utf-8"))
    )
    kept = {
        manifest["metadata"]["name"]: [data["secretKey"] for data in manifest["spec"]["data"]]
        for manifest in documents
    }
    assert kept == {
        name: ["keys.json" if name.endswith("keys") else "password"] for name in VALUES["secrets"].values()
    }
