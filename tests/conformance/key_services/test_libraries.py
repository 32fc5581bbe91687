"""The libraries of key services: loaded where the setting names one; every error that they list is sorted."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from evergrant_server.crypto.key_services.opening import BACKENDS, open_key_service
from evergrant_server.crypto.key_services.port import FailureReason, ServicePurpose
from tests.fakes.key_services import acts
from tests.fakes.key_services.acts import Case

ROOT = Path(__file__).parents[3]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
URLS = {
    "file": "file",
    "aws-kms": "aws-kms:alias/evergrant-{purpose}?region=eu-central-1",
    "vault": "vault:https://vault.example:8200/transit/evergrant-{purpose}",
    "pkcs11": "pkcs11:token=t;object=evergrant-{purpose}?module-path=/lib/m.so&pin-source=file:/run/pin",
    "gcp-kms": "gcp-kms:projects/p/locations/l/keyRings/r/cryptoKeys/evergrant-{purpose}",
    "azure": "azure:https://evergrant.vault.azure.net/keys/evergrant-{purpose}",
}
# loads the whole server but the backends, then opens the key services of its arguments, one after another
LOADED = """\
import importlib, json, pkgutil, sys
from pathlib import Path
import evergrant_server, worker
from evergrant_server.crypto.key_services.opening import BACKENDS, open_key_service
backends = {'evergrant_server.crypto.key_services.' + it.module for it in BACKENDS.values() if it.extra}
for module in pkgutil.walk_packages(evergrant_server.__path__, 'evergrant_server.'):
    if module.name not in backends and not module.name.endswith('__main__'):
        importlib.import_module(module.name)
loaded = []
for url in sys.argv[1:]:
    open_key_service(url, Path('keys.json'))
    loaded.append(sorted(sys.modules))
print(json.dumps(loaded))
"""
LIBRARIES = {
    "aws": {"boto3", "botocore"},
    "vault": {"hvac"},
    "pkcs11": {"pkcs11"},
    "gcp": {"google.cloud", "google.auth", "google.api_core"},
    "azure": {"azure", "msal"},
}


@pytest.mark.soak
def test_no_library_of_a_key_service_is_loaded_but_those_of_the_setting() -> None:
    command = [sys.executable, "-c", LOADED, URLS["file"], URLS["vault"]]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    with_file, with_vault = (set(modules) for modules in json.loads(output))
    assert libraries_of(with_file) == set()
    assert libraries_of(with_vault) == {"vault"}


def libraries_of(modules: set[str]) -> set[str]:
    return {extra for extra, names in LIBRARIES.items() if not modules.isdisjoint(names)}


def test_every_backend_has_an_extra_and_a_column() -> None:
    extras = {it.extra for it in BACKENDS.values() if it.extra}
    assert extras == LIBRARIES.keys() <= EXTRAS.keys()
    assert BACKENDS.keys() == URLS.keys()
    assert len(acts.BACKENDS) == len(BACKENDS)


@pytest.mark.parametrize("scheme", sorted(URLS))
def test_a_service_is_opened_without_a_call(scheme: str) -> None:
    service = open_key_service(URLS[scheme], Path("keys.json"))
    assert BACKENDS[scheme].extra is None or scheme in service.key_name(ServicePurpose.LEASE)


@pytest.mark.parametrize(
    "url",
    [
        "aws-kms:evergrant-{purpose}",
        "aws-kms:alias/evergrant-{purpose}?zone=1",
        "vault:http://vault.example:8200/transit/evergrant-{purpose}",
        "vault:https://vault.example:8200/evergrant-{purpose}",
        "vault:https://me@vault.example:8200/transit/evergrant-{purpose}",
        "pkcs11:token=t;object=evergrant-{purpose}",
        "pkcs11:token=t;object=evergrant-{purpose}?module-path=/lib/m.so&pin-value=1234",
        "pkcs11:object=evergrant-{purpose}?module-path=/lib/m.so&pin-source=file:/run/pin",
        "gcp-kms:evergrant-{purpose}",
        "gcp-kms:projects/p/locations/l/keyRings/r/cryptoKeys/k-{purpose}?endpoint=http://kms.example",
        "azure:http://evergrant.vault.azure.net/keys/evergrant-{purpose}",
        "azure:https://evergrant.vault.azure.net/secrets/evergrant-{purpose}",
        *(url.replace("{purpose}", "lease") for scheme, url in URLS.items() if scheme != "file"),
    ],
)
def test_a_wrong_url_is_refused_with_what_would_be_right(url: str) -> None:
    with pytest.raises(ValueError, match=r"must|needs|no option|https"):
        open_key_service(url, Path("keys.json"))


def test_every_error_that_botocore_lists_is_sorted() -> None:
    import botocore.session  # with the other libraries, seconds of each collection

    from evergrant_server.crypto.key_services import aws_kms

    model = botocore.session.get_session().get_service_model("kms")
    operations = [model.operation_model(name) for name in ("Encrypt", "Decrypt", "DescribeKey")]
    listed = {shape.name for operation in operations for shape in operation.error_shapes}
    never = {"DryRunOperationException"}  # no dry run is asked for
    assert listed - never - {aws_kms.UNUSABLE} <= aws_kms.REASONS.keys()


def test_every_error_of_pkcs11_is_sorted() -> None:
    from pkcs11 import exceptions

    from evergrant_server.crypto.key_services.pkcs11 import open_service
    from evergrant_server.crypto.key_services.port import ServiceUrl

    service = open_service(ServiceUrl.parse(URLS["pkcs11"]))
    errors = [it for it in vars(exceptions).values() if isinstance(it, type)]
    reasons = {error.__name__: service.reason_of(error(), opens=True) for error in errors}
    assert None not in reasons.values()
    by_reason = {reason: {name for name, it in reasons.items() if it is reason} for reason in FailureReason}
    assert {name for name in reasons if name.startswith("Pin")} <= by_reason[FailureReason.DENIED]
    assert {"DeviceError", "DeviceRemoved", "TokenNotPresent", "SessionHandleInvalid", "NoSuchToken"} <= (
        by_reason[FailureReason.AWAY]
    )
    assert by_reason[FailureReason.BROKEN] >= {"EncryptedDataInvalid", "EncryptedDataLenRange"}
    assert "NoSuchKey" in by_reason[FailureReason.GONE]


def test_every_case_is_carried_out_or_has_a_reason() -> None:
    for backend in acts.BACKENDS:
        carried_out = {act.case for act in backend.acts}
        without = dict(backend.without)
        assert carried_out | without.keys() == set(Case), backend.title
        assert carried_out.isdisjoint(without), backend.title
