"""Tokens in Kubernetes Secrets: an operator without definitions of its own, by a label and annotations.

An order is a Secret with the label `evergrant/deliver: "true"`. Its annotations say whose token is wanted:

    evergrant/integration, evergrant/subject    needed
    evergrant/label, evergrant/scopes           as of a lease; scopes with spaces between them
    evergrant/secret                            the Secret to write; by default the order's name and -token
    evergrant/key, evergrant/format             its key (`token`), and what is written (`token`)

The written Secret has the order as its owner, so that Kubernetes deletes it with the order. A Secret of that
name with another owner is never touched. What is wrong stands in the order's annotation `evergrant/problem`.
"""

import json
import re
import ssl
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import httpx2

from evergrant.delivery.delivery import Format, Order, rendered
from evergrant.errors import EvergrantError
from evergrant.lease import Lease

MANAGER = "evergrant-deliver"
LABEL = "evergrant/deliver=true"
WRITTEN = f"app.kubernetes.io/managed-by={MANAGER}"
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PREFIX = "evergrant/"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_LIMIT_S, _WATCH_S, _PAUSE_S = 10.0, 240, 5.0
_PAGE = 500
Json = Mapping[str, Any]


class ClusterError(EvergrantError):
    """The Kubernetes API refuses a request, or doesn't answer."""

    default_code = "kubernetes_failed"
    default_repair = "Check the service account's role, and that the API server answers."


class OrderError(EvergrantError):
    """An order can't be carried out as it stands."""

    default_code = "order_invalid"
    default_repair = "Correct the annotations of the order."


@dataclass(frozen=True, slots=True)
class ClusterOrder:
    """An order in a cluster, and the Secret that is to be written for it."""

    uid: str
    name: str
    order: Order
    secret: str
    key: str


def order_of(item: Json) -> ClusterOrder:
    """The order that a Secret is. Raises OrderError."""
    metadata = cast(Json, item["metadata"])
    annotations = cast(Mapping[str, str], metadata.get("annotations") or {})
    wanted = {
        name.removeprefix(_PREFIX): value for name, value in annotations.items() if name.startswith(_PREFIX)
    }
    for needed in ("integration", "subject"):
        if not wanted.get(needed):
            raise OrderError(f"the annotation {_PREFIX}{needed} is missing")
    name = str(metadata["name"])
    secret, key = wanted.get("secret") or f"{name}-token", wanted.get("key") or "token"
    if not _NAME.fullmatch(secret) or secret == name:
        raise OrderError(f"{_PREFIX}secret is to be the name of another Secret")
    if not _KEY.fullmatch(key):
        raise OrderError(f"{_PREFIX}key is no key of a Secret")
    if (format := wanted.get("format") or Format.TOKEN) not in set(Format):
        raise OrderError(f"{_PREFIX}format is one of {', '.join(Format)}")
    label, scopes = wanted.get("label") or "default", tuple(wanted.get("scopes", "").split()) or None
    order = Order(wanted["integration"], wanted["subject"], label, scopes, Format(format))
    return ClusterOrder(str(metadata["uid"]), name, order, secret, key)


class Cluster:
    """The Secrets of one namespace, through the Kubernetes API."""

    def __init__(
        self, url: str, namespace: str, *, token_file: Path | None, tls: ssl.SSLContext | bool = True
    ) -> None:
        self._token_file = token_file
        self._secrets = f"/api/v1/namespaces/{quote(namespace, safe='')}/secrets"
        # trust_env: a proxy of the environment must not see the service account's token
        self._http = httpx2.Client(base_url=url, verify=tls, trust_env=False, timeout=_LIMIT_S)

    @classmethod
    def of_pod(cls, environ: Mapping[str, str], namespace: str | None = None) -> "Cluster":
        """The cluster that this pod runs in. Raises ClusterError elsewhere."""
        host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
        try:
            if not host:
                raise FileNotFoundError
            tls = ssl.create_default_context(cafile=str(_ACCOUNT / "ca.crt"))
            namespace = namespace or (_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
        except OSError:
            repair = "Run it in a pod with a service account, or give --api-server."
            raise ClusterError("this process runs in no pod", repair=repair) from None
        named = f"[{host}]" if ":" in host else host
        return cls(f"https://{named}:{port}", namespace, token_file=_ACCOUNT / "token", tls=tls)

    def close(self) -> None:
        self._http.close()

    def orders(self) -> tuple[list[Json], str]:
        """Every order, and the version of the list, after which changes are watched. Raises ClusterError."""
        return self._listed(LABEL)

    def written(self) -> list[Json]:
        """Every Secret that was written for an order. Raises ClusterError."""
        return self._listed(WRITTEN)[0]

    def _listed(self, selector: str) -> tuple[list[Json], str]:
        items: list[Json] = []
        query = {"labelSelector": selector, "limit": str(_PAGE)}
        while True:
            page = self._json("GET", self._secrets, params=query)
            items.extend(cast(list[Json], page.get("items") or []))
            metadata = cast(Json, page["metadata"])
            if not (following := metadata.get("continue")):
                return items, str(metadata.get("resourceVersion", ""))
            query["continue"] = str(following)

    def watch(self, version: str) -> Iterator[None]:
        """An item for each change of an order after this version, until the server ends the watch.

        Raises ClusterError, also for a version that is too old.
        """
        query = {"labelSelector": LABEL, "watch": "true", "resourceVersion": version}
        query |= {"timeoutSeconds": str(_WATCH_S), "allowWatchBookmarks": "true"}
        limit = httpx2.Timeout(_LIMIT_S, read=_WATCH_S + _LIMIT_S)
        try:
            with self._http.stream(
                "GET", self._secrets, params=query, headers=self._headers(), timeout=limit
            ) as response:
                if response.status_code != 200:
                    raise ClusterError(
                        f"the watch answers {response.status_code}", status=response.status_code
                    )
                for line in response.iter_lines():
                    event = cast(Json, json.loads(line or "{}"))
                    if event.get("type") == "ERROR":
                        raise ClusterError("the watch has ended: its version is too old")
                    if event.get("type") in ("ADDED", "MODIFIED", "DELETED"):
                        yield
        except (httpx2.RequestError, ValueError) as error:
            raise ClusterError(f"no watch: {type(error).__name__}") from None

    def secret(self, name: str) -> Json | None:
        """Raises ClusterError."""
        return self._json("GET", f"{self._secrets}/{quote(name, safe='')}", absent_is=None)

    def apply(self, name: str, body: Json) -> Json:
        """Server-side apply, which takes no field from another manager. Raises ClusterError."""
        query = {"fieldManager": MANAGER, "force": "false"}
        headers = {"content-type": "application/apply-patch+yaml"}
        document = {"apiVersion": "v1", "kind": "Secret", **body}
        path = f"{self._secrets}/{quote(name, safe='')}"
        return self._json("PATCH", path, params=query, headers=headers, content=json.dumps(document))

    def delete(self, name: str, uid: str, version: str) -> None:
        """Delete the Secret if it is still this one. Raises ClusterError."""
        options = {"preconditions": {"uid": uid, "resourceVersion": version}}
        path, headers = f"{self._secrets}/{quote(name, safe='')}", {"content-type": "application/json"}
        self._json("DELETE", path, content=json.dumps(options), headers=headers, absent_is=None)

    def _headers(self) -> dict[str, str]:
        """The service account's token, which the kubelet replaces in its file."""
        if self._token_file is None:
            return {}
        try:
            return {"authorization": f"Bearer {self._token_file.read_text(encoding='utf-8').strip()}"}
        except OSError as error:
            raise ClusterError(f"{self._token_file} can't be read: {error.strerror}") from None

    def _json(self, method: str, path: str, *, absent_is: Any = ..., **arguments: Any) -> Any:
        """An answer's object; `absent_is` in place of a 404. No message quotes an answer."""
        headers = {**self._headers(), **arguments.pop("headers", {})}
        try:
            response = self._http.request(method, path, headers=headers, **arguments)
            if response.status_code == 404 and absent_is is not ...:
                return absent_is
            if not 200 <= response.status_code < 300:
                why = f"{method} {path} answers {response.status_code}"
                raise ClusterError(why, status=response.status_code)
            return response.json()
        except httpx2.RequestError as error:
            raise ClusterError(f"no answer from the Kubernetes API ({type(error).__name__})") from None
        except ValueError:
            raise ClusterError(f"the answer to {method} {path} is no JSON") from None


class TokenSecret:
    """The Secret that is written for an order."""

    def __init__(self, cluster: Cluster, ordered: ClusterOrder) -> None:
        self._cluster, self._ordered = cluster, ordered

    def write(self, lease: Lease, format: Format) -> bool:
        """Write the Secret, unless it has this text. Raises ClusterError, OrderError."""
        ordered, text = self._ordered, rendered(lease, format).encode()
        before = self._ours()
        data = cast(Mapping[str, str], (before or {}).get("data") or {})
        if ordered.key in data and b64decode(data[ordered.key]) == text:
            return False
        owner = {
            "apiVersion": "v1", "kind": "Secret", "name": ordered.name, "uid": ordered.uid,
            "controller": True, "blockOwnerDeletion": False,
        }  # fmt: skip
        ends = lease.expires_at.isoformat() if lease.expires_at else "never"
        metadata: dict[str, Any] = {
            "name": ordered.secret,
            "labels": {"app.kubernetes.io/managed-by": MANAGER},
            "annotations": {
                f"{_PREFIX}connection": lease.connection_id,
                f"{_PREFIX}generation": str(lease.generation),
                f"{_PREFIX}expires-at": ends,
            },
            "ownerReferences": [owner],
        }
        if before is not None:  # and no other one of this name
            metadata["uid"] = before["metadata"]["uid"]
        encoded = b64encode(text).decode()
        applied = self._cluster.apply(ordered.secret, {"metadata": metadata, "data": {ordered.key: encoded}})
        if before is None:
            self._require_new(applied)
        return True

    def _require_new(self, applied: Json) -> None:
        """Give back what was written into a Secret that somebody made at this moment. Raises OrderError."""
        metadata = cast(Json, applied["metadata"])
        managers = {field.get("manager") for field in cast(list[Json], metadata.get("managedFields") or [])}
        if managers - {MANAGER}:
            named = {"name": self._ordered.secret, "uid": metadata["uid"]}
            self._cluster.apply(self._ordered.secret, {"metadata": named})
            raise OrderError(f"the Secret {self._ordered.secret} isn't of this order")

    def remove(self) -> bool:
        """Delete the Secret. Raises ClusterError, OrderError."""
        secret = self._ours()
        if secret is None:
            return False
        metadata = cast(Json, secret["metadata"])
        self._cluster.delete(self._ordered.secret, str(metadata["uid"]), str(metadata["resourceVersion"]))
        return True

    def _ours(self) -> Json | None:
        """The Secret as it is now. Raises OrderError for one that isn't of this order."""
        secret = self._cluster.secret(self._ordered.secret)
        if secret is None:
            return None
        owners = cast(list[Json], cast(Json, secret["metadata"]).get("ownerReferences") or [])
        if not any(owner.get("uid") == self._ordered.uid and owner.get("controller") for owner in owners):
            repair = f"Name another one in {_PREFIX}secret, or delete it."
            raise OrderError(f"the Secret {self._ordered.secret} isn't of this order", repair=repair)
        return secret


def tell(cluster: Cluster, item: Json, problem: str | None) -> None:
    """Have the order's annotation say what is wrong, or nothing. Raises ClusterError."""
    metadata = cast(Json, item["metadata"])
    annotations = cast(Mapping[str, str], metadata.get("annotations") or {})
    if annotations.get(f"{_PREFIX}problem") == problem:
        return
    told = {} if problem is None else {f"{_PREFIX}problem": problem}
    named = {"name": metadata["name"], "uid": metadata["uid"], "annotations": told}
    cluster.apply(str(metadata["name"]), {"metadata": named})


def watch_orders(cluster: Cluster, wake: threading.Event, stop: threading.Event) -> None:
    """Set `wake` for each change of an order, until `stop`. A lost watch begins anew, and wakes too."""
    while not stop.is_set():
        try:
            _, version = cluster.orders()
            wake.set()
            for _ in cluster.watch(version):
                wake.set()
                if stop.is_set():
                    return
        except ClusterError:
            stop.wait(_PAUSE_S)
