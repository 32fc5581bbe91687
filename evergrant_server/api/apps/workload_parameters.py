"""The body of a credential for `workload_identity`, and how its row keeps it."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from evergrant_server.api.apps.certificate_parameters import X509SvidParameters
from evergrant_server.api.http.models import Body, Slug, Text, _storable
from evergrant_server.core.access import AuthenticationMethod
from evergrant_server.core.ids import Tenant
from evergrant_server.core.workloads.rules import MOST_CLAIMS, WorkloadRule, rule_problem
from evergrant_server.problems import invalid_request
from evergrant_server.store import Transaction

_ClaimText = Annotated[Text, AfterValidator(_storable)]


class WorkloadIdentityParameters(Body):
    """`issuer` is the name of a trusted issuer. `claims`: each with its only value; all of them are required.

    A claim within another one is named by its JSON Pointer (RFC 6901), such as
    `/kubernetes.io/serviceaccount/uid`. `audience` is of the issuers of the kind `azure` alone: the id of the
    application there that stands for Evergrant. Elsewhere the audience is Evergrant's issuer.
    """

    issuer: Slug
    claims: Annotated[dict[_ClaimText, _ClaimText], Field(min_length=1, max_length=MOST_CLAIMS)]
    audience: _ClaimText | None = None


class WorkloadIdentityBody(Body):
    """Tokens that the app's platform signs, or JWT-SVIDs of its trust domain."""

    method: Literal[AuthenticationMethod.WORKLOAD_IDENTITY]
    parameters: WorkloadIdentityParameters


async def stored_parameters(tx: Transaction, tenant: Tenant, parameters: Body) -> dict[str, Any]:
    """The parameters of any method, as the credential's row keeps them.

    Raises Failure INVALID_REQUEST for a rule that could let others in, or that names no trusted issuer.
    """
    given = parameters.model_dump(mode="json")
    if not isinstance(parameters, WorkloadIdentityParameters | X509SvidParameters) or not parameters.issuer:
        return given
    issuer = await tx.trusted_issuers.by_name(tenant, parameters.issuer)
    if issuer is None:
        raise invalid_request("parameters.issuer", "There is no trusted issuer of this name: put it first.")
    if isinstance(parameters, X509SvidParameters):
        if not issuer.has_spiffe_id(parameters.spiffe_id):
            why = f"parameters.spiffe_id: it is no SPIFFE ID of {issuer.issuer}."
            raise invalid_request("parameters.spiffe_id", why)
        return {**given, "issuer_id": issuer.id}
    rule = WorkloadRule.model_validate({**given, "issuer_id": issuer.id})
    if problem := rule_problem(issuer, rule):
        field, why = problem
        raise invalid_request(f"parameters.{field}", f"parameters.{field}: {why}.")
    return {**given, "issuer_id": issuer.id}
