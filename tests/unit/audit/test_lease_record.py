"""A lease's record from ready pieces has the bytes and the hash of the general path."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from evergrant_server.audit.hash_chain import canonical_json, chained_rows
from evergrant_server.audit.lease_record import DelegatedUse, LeaseClaim, LeaseFacts
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.messages.base import RequestContext
from tests.conformance.store.samples import a_connection, a_permit, an_app
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


def the_entry(claim: LeaseClaim, action: str, detail: str, at: datetime, trace_id: str) -> AuditEntry:
    return AuditEntry(
        tenant=claim.tenant,
        at=at,
        action=AuditAction(action),
        object=claim.connection_id,
        context=RequestContext(by=claim.context.by, trace_id=trace_id),
        detail=json.loads(detail),
    )


@given(
    KINDS, WORDS, WORDS, WORDS, st.lists(st.tuples(MOMENTS, WORDS), min_size=1, max_size=3), st.integers(0)
)
def test_the_record_of_a_pair_is_that_of_the_general_path(
    kind: dict[str, Any], by: str, shard: str, tenant: str, leases: list[tuple[datetime, str]], count: int
):
    connection = a_connection(tenant=tenant)
    facts = LeaseFacts(a_claim(connection, an_app(), context=RequestContext(by=by), **kind), shard)
    entries = [the_entry(facts.claim, facts.action, facts.detail, at, trace_id) for at, trace_id in leases]
    previous = "0" * 64
    for row, (at, trace_id) in zip(chained_rows(entries, shard, count, previous), leases, strict=True):
        record = facts.record(at, trace_id)
        assert record.hash_behind(previous, row["seq"]) == row["hash"]
        assert (facts.detail, facts.by, record.at) == (row["detail"], row["by"], at)
        body = json.loads(record.body)
        assert record.body == canonical_json(body)
        columns = set(row) - {"seq", "previous_hash", "hash", "revision"}
        assert body.keys() == columns | {"format"}
        previous = row["hash"]


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
        facts = LeaseFacts(a_claim(connection, app, **kind), "lease-1")
        assert (facts.action, json.loads(facts.detail)) == (action, {**detail, **more})
