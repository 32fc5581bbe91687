"""Generates a client secret that is a signed JWT, as Apple requires. Pure.

https://developer.apple.com/documentation/accountorganizationaldatasharing/creating-a-client-secret
"""

from collections.abc import Mapping
from datetime import datetime

from evergrant_server.core.connections.client_key import ClientKey
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.client_auth.assertions import sign_jwt
from providers.definition.schema import ProviderSpec
from providers.definition.templates import checked_params, fill_template


def generate_client_secret(
    spec: ProviderSpec, client_id: str, params: Mapping[str, str], key: ClientKey | None, at: datetime
) -> Secret:
    """A client secret signed with the integration's key.

    Raises Failure CLIENT_REJECTED when the integration lacks the key or a parameter, or when the key
    can't sign with the definition's algorithm.
    """
    rule = spec.client_secret_generator
    assert rule is not None
    if key is None:
        why = f"the integration has no key to sign the client secret that {spec.name} requires"
        raise Failure(ErrorCode.CLIENT_REJECTED, why, provider=spec.name, field="client_key")
    try:
        values = {**checked_params(spec, params), "client_id": client_id}
        claims = {name: fill_template(text, values, spec) for name, text in rule.claims.items()}
        named = {name: fill_template(text, values, spec) for name, text in rule.headers.items()}
    except Failure as failure:  # the integration's admin repairs it
        raise Failure(ErrorCode.CLIENT_REJECTED, failure.detail, provider=spec.name) from None
    now = int(at.timestamp())
    times = {"iat": now, "exp": now + rule.lifetime_s}
    return Secret(sign_jwt(key, claims | times, alg=rule.alg, headers=named))
