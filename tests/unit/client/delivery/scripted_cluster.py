"""A scripted Kubernetes API on loopback: the Secrets of one namespace, with watches and server-side apply.

It does what the API's reference says of Secrets: fields have managers; an apply without force is refused if
another manager has the field with another value, and drops the manager's fields that it leaves out.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, Queue
from threading import RLock, Thread
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.fakes.patience import PATIENCE_S

NAMESPACE = "reports"
ACCOUNT = "canary-service-account"
PATH = re.compile(rf"/api/v1/namespaces/{NAMESPACE}/secrets(?:/([^/]+))?")
Place = tuple[str, ...]
_END = None  # of a watch


@dataclass
class StoredSecret:
    """A Secret as fields with their managers."""

    name: str
    uid: str
    version: int
    fields: dict[Place, Any] = field(default_factory=dict[Place, Any])
    managers: dict[Place, set[str]] = field(default_factory=dict[Place, set[str]])

    def labels(self) -> dict[str, str]:
        return {
            place[2]: value for place, value in self.fields.items() if place[:2] == ("metadata", "labels")
        }

    def shown(self) -> dict[str, Any]:
        names = sorted({name for managers in self.managers.values() for name in managers})
        metadata = {"name": self.name, "uid": self.uid, "resourceVersion": str(self.version)}
        item: dict[str, Any] = {"metadata": {**metadata, "managedFields": [{"manager": it} for it in names]}}
        for place, value in self.fields.items():
            if place[:2] == ("metadata", "ownerReferences"):
                item["metadata"].setdefault("ownerReferences", []).append(value)
                continue
            inner = item
            for part in place[:-1]:
                inner = inner.setdefault(part, {})
            inner[place[-1]] = value
        return item


def leaves(body: Mapping[str, Any]) -> dict[Place, Any]:
    metadata = body.get("metadata", {})
    found: dict[Place, Any] = {("data", name): value for name, value in body.get("data", {}).items()}
    for part in ("labels", "annotations"):
        found |= {("metadata", part, name): value for name, value in metadata.get(part, {}).items()}
    for owner in metadata.get("ownerReferences", ()):
        found["metadata", "ownerReferences", owner["uid"]] = owner
    return found


class ScriptedCluster:
    def __init__(self) -> None:
        self.secrets: dict[str, StoredSecret] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.refused = 0  # status with which everything is refused; 0: none is
        self.lock = RLock()
        self._version = 100
        self._watches: list[Queue[dict[str, Any] | None]] = []
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[Self]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            self.end_watches()
            server.shutdown()
            server.server_close()
            thread.join(PATIENCE_S)

    def end_watches(self) -> None:
        with self.lock:
            for queue in self._watches:
                queue.put(_END)
            self._watches.clear()

    def put(self, name: str, manager: str = "kubectl", **body: Any) -> StoredSecret:
        """What `kubectl apply` of somebody else does: labels, annotations, data, ownerReferences."""
        data = body.pop("data", {})
        status, _ = self.apply(name, {"metadata": body, "data": data}, manager)
        assert status == 200
        return self.secrets[name]

    def order(self, name: str = "report", **annotations: str) -> StoredSecret:
        said = {"integration": "crm", "subject": "alice", **annotations}
        return self.put(
            name,
            labels={"evergrant/deliver": "true"},
            annotations={f"evergrant/{part}": value for part, value in said.items()},
        )

    def problem(self, name: str = "report") -> str | None:
        return self.secrets[name].fields.get(("metadata", "annotations", "evergrant/problem"))

    def text(self, name: str, key: str = "token") -> str | None:
        """The data of a Secret as it was encoded; None: there is no such Secret."""
        stored = self.secrets.get(name)
        return None if stored is None else stored.fields.get(("data", key), "")

    def watching(self) -> int:
        return len(self._watches)

    def apply(self, name: str, body: Mapping[str, Any], manager: str) -> tuple[int, dict[str, Any]]:
        with self.lock:
            stored, wanted = self.secrets.get(name), leaves(body)
            uid = body.get("metadata", {}).get("uid")
            if uid is not None and (stored is None or stored.uid != uid):
                return 409, {}
            for place, value in wanted.items():
                others = (stored.managers.get(place, set()) if stored else set[str]()) - {manager}
                if stored and others and stored.fields[place] != value:
                    return 409, {}
            is_new = stored is None
            self._version += 1
            if stored is None:
                stored = self.secrets[name] = StoredSecret(name, f"uid-{self._version}", self._version)
            for place in [place for place, managers in stored.managers.items() if manager in managers]:
                if place not in wanted:
                    stored.managers[place].discard(manager)
                    if not stored.managers[place]:
                        del stored.managers[place], stored.fields[place]
            for place, value in wanted.items():
                stored.fields[place] = value
                stored.managers.setdefault(place, set()).add(manager)
            stored.version = self._version
            self._tell("ADDED" if is_new else "MODIFIED", stored)
            return 200, stored.shown()

    def delete(self, name: str, preconditions: Mapping[str, str] | None = None) -> int:
        with self.lock:
            stored = self.secrets.get(name)
            if stored is None:
                return 404
            now = {"uid": stored.uid, "resourceVersion": str(stored.version)}
            if any(now[part] != value for part, value in (preconditions or {}).items()):
                return 409
            del self.secrets[name]
            self._version += 1
            self._tell("DELETED", stored)
            return 200

    def listed(self, selector: str) -> dict[str, Any]:
        with self.lock:
            name, _, value = selector.partition("=")
            items = [it.shown() for it in self.secrets.values() if it.labels().get(name) == value]
            return {"metadata": {"resourceVersion": str(self._version)}, "items": items}

    def watch(self) -> Queue[dict[str, Any] | None]:
        with self.lock:
            self._watches.append(queue := Queue())
            return queue

    def _tell(self, kind: str, stored: StoredSecret) -> None:
        for queue in self._watches:
            queue.put({"type": kind, "object": stored.shown()})


def _handler(cluster: ScriptedCluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # a body waits for no acknowledgement of its head

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def answer(self, status: int, body: Any) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def handle_request(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            raw = self.rfile.read(int(self.headers.get("content-length", "0")))
            body = json.loads(raw) if raw else {}
            cluster.requests.append((self.command, url.path, query))
            if self.headers.get("authorization") != f"Bearer {ACCOUNT}":
                return self.answer(401, {})
            if cluster.refused:
                return self.answer(cluster.refused, {})
            match = PATH.fullmatch(url.path)
            assert match is not None, url.path
            name = match[1]
            if self.command == "PATCH":
                assert self.headers["content-type"] == "application/apply-patch+yaml"
                assert query["force"] == "false"
                return self.answer(*cluster.apply(name, body, query["fieldManager"]))
            if self.command == "DELETE":
                return self.answer(cluster.delete(name, body.get("preconditions")), {})
            if name is not None:
                stored = cluster.secrets.get(name)
                return self.answer(404, {}) if stored is None else self.answer(200, stored.shown())
            if "watch" in query:
                return self.stream(cluster.watch())
            return self.answer(200, cluster.listed(query["labelSelector"]))

        def stream(self, events: Queue[dict[str, Any] | None]) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                while (event := events.get(timeout=PATIENCE_S)) is not _END:
                    line = json.dumps(event).encode() + b"\n"
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.write(b"0\r\n\r\n")
            except (OSError, Empty):
                self.close_connection = True

        do_GET = do_PATCH = do_DELETE = handle_request  # noqa: N815  # the names of http.server

    return Handler
