"""What the ledger records of a lease before it leaves."""

from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.leases.refusals import LeaseRequest
from evergrant_server.audit.lease_ledger import LeaseClaim
from evergrant_server.policy import PermitDecision
from evergrant_server.store import LeaseRow
from providers.requests.dpop import origin_of


def claim_of(
    call: ApiCall, lease_request: LeaseRequest, row: LeaseRow, decision: PermitDecision
) -> LeaseClaim:
    """The lease as it was judged, with the revisions by which the ledger checks it again."""
    assert row.grant is not None
    app, credential, proof = call.caller.app, call.caller.credential, lease_request.proof
    proxied = lease_request.proxied
    return LeaseClaim(
        tenant=app.tenant,
        connection_id=row.connection_id,
        connection_revision=row.connection_revision,
        app_id=app.id,
        app_revision=app.revision,
        key_id=credential.id,
        valid_until=min(credential.valid_until, decision.valid_until or credential.valid_until),
        permit=decision.permit,
        observed=decision.observed,
        authorization=call.caller.authorization,
        generation=row.generation,
        context=call.context,
        scopes=row.grant.scopes,
        at=call.now,
        dpop_request=None if proof is None else f"{proof.htm} {origin_of(proof.htu)}",
        signed_request=lease_request.signs,
        proxied=None if proxied is None else {"call": proxied.id, **proxied.recorded},
        through=None if proxied is None else proxied.through,
        delegated=None if call.caller.delegated is None else call.caller.delegated.use,
    )
