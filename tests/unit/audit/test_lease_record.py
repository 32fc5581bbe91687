"""A lease's record from ready pieces has the body of the general path."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from evergrant_server.audit.bodies import body_of
from evergrant_server.audit.lease_record import DelegatedUse, LeaseClaim, LeaseFacts
from evergrant_server.audit.merkle_tree import leaf_hash
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.messages.base import RequestContext
from tests.conformance.store.samples import a_connection, a_permit, an_app
from tests.fakes.databases import NOW
from tests.unit.audit.claims import a_claim

WORDS = st.text(max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS
MOMENTS = st.datetimes(
    min_value=datetime(1, 1, 2),
    max_value=datetime(9999, 12, 30),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45)), timezone(-timedelta(hours=3))]),
)
KINDS = st.fixed_dictionaries(
    {},
    optional={
        "scopes": st.lists(WORDS, max_size=5).map(tuple) | st.just(("s" * 9_000, "t")),
        "dpop_request": WORDS,
        "signed_request": WORDS,
        "proxied": st.dictionaries(st.text("abc_", min_size=1), SCALARS | st.lists(SCALARS), max_size=4),
        "permit": st.builds(lambda name: a_permit(an_app(), name=name), st.text("abc", min_size=1)),
        "observed": st.lists(WORDS, max_size=3).map(tuple),
        "delegated": st.builds(lambda word: DelegatedUse((), (), {"subject": word}), WORDS),
    },
)


def the_entry(
    claim: LeaseClaim, action: str, detail: dict[str, Any], at: datetime, trace_id: str
) -> AuditEntry:
    return AuditEntry(
        tenant=claim.tenant,
        at=at,
        action=AuditAction(action),
        object=claim.connection_id,
        context=RequestContext(by=claim.context.by, trace_id=trace_id),
        detail=detail,
    )


@given(KINDS, WORDS, WORDS, st.lists(st.tuples(MOMENTS, WORDS), min_size=1, max_size=3))
def test_the_record_of_a_pair_is_that_of_the_general_path(
    kind: dict[str, Any], by: str, tenant: str, leases: list[tuple[datetime, str]]
):
    connection = a_connection(tenant=tenant)
    facts = LeaseFacts(a_claim(connection, an_app(), context=RequestContext(by=by), **kind))
    for at, trace_id in leases:
        record = facts.record(at, trace_id)
        body = json.loads(record.body)
        entry = the_entry(facts.claim, facts.action, body["detail"], at, trace_id)
        assert record.body.partition(',"s":')[0] == body_of(entry).partition(',"s":')[0]
        assert list(body) == list(json.loads(body_of(entry)))
        assert (record.leaf, record.at) == (leaf_hash(record.body.encode("ascii")), at)


def test_a_record_says_what_was_leased():
    connection, app = a_connection(), an_app()
    detail = {"app": app.id, "generation": connection.generation}
    for kind, action, more in (
        ({}, "lease.issued", {"scopes": ["repo"]}),
        ({"signed_request": "GET x"}, "lease.issued", {"scopes": ["repo"], "signed": "GET x"}),
        ({"dpop_request": "GET x"}, "lease.dpop_proof_issued", {"for": "GET x"}),
        ({"proxied": {"path": "/"}, "through": "app_e"}, "proxy.called", {"path": "/", "through": "app_e"}),
        ({"observed": ("a",)}, "lease.issued", {"scopes": ["repo"], "would_be_denied_by": ["a"]}),
    ):
        body = json.loads(LeaseFacts(a_claim(connection, app, **kind)).record(NOW, "").body)
        assert (body["action"], body["detail"]) == (action, {**detail, **more})
