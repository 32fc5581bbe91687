"""The kinds of objects that a folder may describe, in the order of changes: how each is read, put, deleted.

Fields and models are those of the generated client. What isn't here a person decides: where people log in,
who leaves, and definitions of providers, each of which is approved by itself.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, cast

from evergrant.api.call import Call
from evergrant.api.operations import Operations
from evergrant.cli.options import if_there
from evergrant.cli.tables import row_of
from evergrant.sync_client import Evergrant

OWNER = "owner"  # of a folder
Row = dict[str, Any]
_API: Any = Operations  # whose methods are descriptions of calls, unsent


class Key(NamedTuple):
    """What names an object. `parent` is the app or integration that it belongs to; `name` is empty where
    that has one such object alone."""

    kind: str
    parent: str | None
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {'/'.join(part for part in (self.parent, self.name) if part)}"

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments by which the client's methods name it."""
        return tuple(part for part in (self.parent, self.name) if part)


class Field(NamedTuple):
    is_required: bool
    is_list: bool


class Answer(NamedTuple):
    """What the API says of a PUT: the object after it, and of a dry run which secrets are others than the
    stored ones, and whether a second admin has to approve."""

    row: Row
    secrets: frozenset[str] = frozenset()
    needs_approval: bool = False


def _no_references(_: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    return ()


@dataclass(frozen=True)
class Kind:
    """`put`, `listed` and `delete` are methods of the client. `action` is that of audit records of a PUT.

    `secrets` are paths of members whose values a file never holds, `texts` of those that may be read from
    elsewhere; `*` is every name. `naming` are the fields that the API names where an object that this one
    refers to isn't there. `kept` are members that stay as they are where the folder doesn't name them.
    """

    name: str
    section: str
    put: str
    listed: str
    delete: str | None
    action: str
    parent: str | None = None
    is_single: bool = False
    secrets: frozenset[str] = frozenset()
    texts: frozenset[str] = frozenset()
    kept: tuple[str, ...] = ()
    naming: frozenset[str] = frozenset()
    references: Callable[[Mapping[str, Any]], Iterable[tuple[str, object]]] = _no_references

    @cached_property
    def fields(self) -> Mapping[str, Field]:
        """The members that a file may have, which are the parameters of the PUT."""
        declared = inspect.signature(getattr(Evergrant, self.put))
        of_path = 1 + (self.parent is not None) + (not self.is_single)  # and self
        return {
            name: Field(parameter.default is parameter.empty, str(parameter.annotation).startswith("Texts"))
            for name, parameter in list(declared.parameters.items())[of_path:]
        }

    def call(self, key: Key, values: Mapping[str, Any], **query: str) -> Call[Answer]:
        """The PUT of an object with these values."""
        call: Call[Any] = getattr(_API, self.put).call(*key.names, **values)
        parse = call.parse

        def answer(response: Any) -> Answer:
            headers = response.headers
            changed = headers.get_list("evergrant-changed-secret", split_commas=True)
            needs_approval = "evergrant-needs-approval" in headers
            return Answer(row_of(parse(response)), frozenset(changed), needs_approval)

        return replace(call, parse=answer, query=query)

    def rows(self, client: Evergrant, parent: str | None) -> dict[str, Row]:
        """The objects that exist, by name; of a parent, where the kind has one. Raises EvergrantError."""
        method = getattr(client, self.listed)
        if self.is_single:
            only = if_there(method, str(parent))
            return {} if only is None else {"": row_of(only)}
        listed = method() if parent is None else method(parent)
        return {str(row["name"]): row for row in map(row_of, listed)}

    def changed(self, before: Row, after: Row) -> dict[str, tuple[Any, Any]]:
        """The members of the PUT that differ, before and after it."""
        compared = [name for name in self.fields if name in before and name in after]
        if self.name == "integration" and before["state"] == "failed":
            compared.append("state")  # what failed is tried again
        return {name: (before[name], after[name]) for name in compared if before[name] != after[name]}


def _members(value: object) -> Mapping[str, object]:
    """The members of an object of a file; of anything else none: the API refuses it."""
    return cast(Mapping[str, object], value) if isinstance(value, dict) else {}


def _of_integration(fields: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    yield "integration", _members(fields.get("login")).get("integration")
    yield "integration", fields.get("identity_provider")


def _of_credential(fields: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    yield "issuer", _members(fields.get("parameters")).get("issuer")


def _of_permit(fields: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    yield "integration", fields.get("integration")  # an approval is for the one that it is then


def _of_agent(fields: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    yield "app", str(fields.get("sponsor", "")).removeprefix("app:")


def _of_rule(fields: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    yield "issuer", fields.get("issuer")
    for app in (*(fields.get("actors") or ()), *_members(fields.get("clients")).values()):
        yield "app", app


KINDS: tuple[Kind, ...] = (
    Kind("issuer", "issuers", "put_trusted_issuer", "trusted_issuers", "delete_trusted_issuer",
         "trusted_issuer.put"),
    Kind("integration", "integrations", "put_integration", "integrations", "delete_integration",
         "integration.put",
         secrets=frozenset({"client_secret", "initial_access_token", "client_key.private",
                            "client_certificate.private"}),
         texts=frozenset({"client_certificate.certificate"}), references=_of_integration,
         naming=frozenset({"login", "login.integration", "identity_provider"})),
    Kind("security-events", "security_events", "put_event_receiver", "event_receiver",
         "delete_event_receiver", "security_events.put", parent="integration", is_single=True,
         secrets=frozenset({"secret"})),
    Kind("app", "apps", "put_app", "apps", "delete_app", "app.put", kept=("disabled",)),
    Kind("agent", "agent", "put_agent", "agent", None, "app.agent_put", parent="app", is_single=True,
         references=_of_agent, naming=frozenset({"sponsor"})),
    Kind("credential", "credentials", "put_credential", "credentials", "delete_credential",
         "credential.put", parent="app", texts=frozenset({"parameters.ca", "parameters.bundle"}),
         references=_of_credential, naming=frozenset({"parameters.issuer"})),
    Kind("permit", "permits", "put_permit", "permits", "delete_permit", "permit.put", parent="app",
         references=_of_permit),
    Kind("delegation-rule", "delegation_rules", "put_delegation_rule", "delegation_rules",
         "delete_delegation_rule", "delegation_rule.put", references=_of_rule,
         naming=frozenset({"issuer", "actors"})),
    Kind("webhook", "webhooks", "put_webhook", "webhooks", "delete_webhook", "webhook.put",
         texts=frozenset({"url"}), kept=("disabled",)),
    Kind("stream", "streams", "put_audit_stream", "audit_streams", "delete_audit_stream",
         "audit_stream.put", secrets=frozenset({"headers.*"}), texts=frozenset({"url"}),
         kept=("disabled",)),
)  # fmt: skip
BY_NAME = {kind.name: kind for kind in KINDS}
