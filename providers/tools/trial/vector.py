"""What a trial saw as a test vector that can be contributed, without secrets and personal data."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import yaml

from evergrant_server.core.connections.flow import Flow
from providers.tools.trial.redaction import Redactor
from providers.tools.trial.token_requests import SeenReply
from providers.tools.trial.vector_replies import written_reply, written_tokens
from providers.tools.trial.vector_requests import VectorRequests

_REFUSALS = {
    "revoked": ("dead_token", "grant_rejected", "a revoked token"),
    "altered": ("dead_token", "grant_rejected", "an altered token"),
    "reused": ("dead_token", "grant_rejected", "a token that was used already"),
    "wrong secret": ("client", "client_rejected", "a wrong secret"),
}
_HEAD = """\
# {source}
# Tokens are placeholders; names, ids and addresses were replaced. Read every line before you give it away.
# docs/guide/adding-a-provider.md says how to contribute it.
"""


class TrialVector:
    """The vector of one trial."""

    def __init__(
        self, requests: VectorRequests, seen: Sequence[SeenReply], redactor: Redactor, source: str
    ) -> None:
        self._requests = requests
        self._setup = requests.setup
        self._seen = {reply.kind: reply for reply in reversed(seen)}  # the first of each kind
        self._redactor = redactor
        self._source = source

    async def text(self) -> str:
        """The file. It was redacted part by part; the whole is searched for secrets and tenants again."""
        self._redactor.learn_personal(self._requests.tenant_words)
        await self._vector()  # learns the names of every reply before the first is written
        document = yaml.safe_dump(await self._vector(), sort_keys=False, allow_unicode=True, width=108)
        return _HEAD.format(source=self._source) + self._requests.without_tenant(
            self._redactor.without_secrets(document)
        )

    async def _vector(self) -> dict[str, Any]:
        requests = self._requests
        vector: dict[str, Any] = {}
        if requests.endpoints is not None:
            vector["endpoints"] = requests.endpoints.model_dump(mode="json", exclude_defaults=True)
        vector |= {"params": requests.params} if requests.params else {}
        vector |= {"facts": requests.facts} if requests.facts else {}
        vector["scopes"] = list(self._setup.named_scopes)
        if self._setup.flow is Flow.AUTHORIZATION_CODE:
            vector["authorize"] = requests.authorization()
        vector |= await self._token_parts()
        revoked = self._seen.get("revoke")
        if revoked is not None and revoked.failure is None:
            (token,) = revoked.sent.values()
            vector["revoke"] = {"request": await requests.revocation(token), "reply": self._status(revoked)}
        refusals = list(self._refusals())
        absent = {"dead_token", "client", "passing"} - {refusal["of"] for refusal in refusals}
        return vector | {"refusals": refusals} | ({"none_found": sorted(absent)} if absent else {})

    async def _token_parts(self) -> dict[str, Any]:
        requests, spec = self._requests, self._setup.spec
        builders: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "post_exchange": requests.post_exchange,
            "refresh": requests.refresh,
        }
        if self._setup.flow is Flow.AUTHORIZATION_CODE:
            builders = {"exchange": requests.exchange, **builders}
        parts: dict[str, Any] = {}
        for kind, build in builders.items():
            seen = self._seen.get(kind)
            if seen is not None and seen.tokens is not None:
                reply = written_reply(spec, self._redactor, seen)
                read = written_tokens(spec, seen, reply)
                parts[kind] = {"source": self._source, "request": await build(), "reply": reply, **read}
        return parts

    def _status(self, seen: SeenReply) -> dict[str, Any]:
        """A reply whose body is read only where the definition has rules for it."""
        spec = self._setup.spec
        whole = written_reply(spec, self._redactor, seen)
        return whole if spec.error_rules or spec.status_field else {"status": seen.reply.status}

    def _refusals(self) -> Iterator[dict[str, Any]]:
        """Each different refusal, as it should be read, not as it was."""
        written: list[tuple[str, dict[str, Any]]] = []
        for kind, (of, code, wording) in _REFUSALS.items():
            seen = self._seen.get(kind)
            if seen is None or seen.failure is None:
                continue
            reply = written_reply(self._setup.spec, self._redactor, seen)
            if (of, reply) not in written:
                yield {"of": of, "reply": reply, "code": code, "source": f"{self._source} ({wording})"}
            written.append((of, reply))
