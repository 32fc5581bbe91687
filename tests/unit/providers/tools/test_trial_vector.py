"""A vector that is contributed names neither the tenant of the user who tried nor a person."""

import json
from typing import Any

import pytest
import yaml

from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.secret import Secret
from providers.responses.raw_reply import RawReply
from providers.tools.trial.consent import TrialSetup
from providers.tools.trial.redaction import KeptFields, Redactor
from providers.tools.trial.token_requests import SeenReply
from providers.tools.trial.vector import TrialVector
from providers.tools.trial.vector_requests import VectorRequests
from providers.tools.vector_shape import shape_problems
from tests.unit.providers.samples import an_integration
from tests.unit.providers.tools.trials import SOURCE, a_spec

TENANT = "3f9c1a52-7d44-4b6e-9a10-5c2e8b7d6f01"
_ENTRA = "https://login.microsoftonline.com"
_B2C = "https://morpork.b2clogin.com"
_REJECTED = Failure(ErrorCode.GRANT_REJECTED, "refused")


async def vector_text(
    endpoints: Endpoints, scopes: tuple[str, ...] = ("read",), said: tuple[dict[str, Any], ...] = ()
) -> str:
    """The vector of a trial whose refusals had these bodies."""
    spec, secret = a_spec(), Secret("canary-of-the-client")
    integration = an_integration(spec.name, client_id="canary-client", endpoints=endpoints)
    flow, redirect = Flow.AUTHORIZATION_CODE, "https://app.example/back"
    setup = TrialSetup(spec, integration, secret, redirect, flow, scopes)
    granted = RawReply(200, {}, b'{"access_token": "canary-access", "token_type": "Bearer"}')
    tokens = TokenSet(access_token=Secret("canary-access"))
    seen = [SeenReply("exchange", granted, tokens=tokens)]
    for kind, body in zip(("revoked", "altered"), said, strict=False):
        reply = RawReply(400, {"www-authenticate": str(body.get("error"))}, json.dumps(body).encode())
        seen.append(SeenReply(kind, reply, failure=_REJECTED))
    return await TrialVector(VectorRequests(setup, {}), seen, Redactor(), SOURCE).text()


@pytest.mark.parametrize(
    ("endpoints", "names"),
    [
        (
            Endpoints(
                issuer=f"{_ENTRA}/{TENANT}/v2.0",
                authorization_endpoint=f"{_ENTRA}/{TENANT}/oauth2/v2.0/authorize",
                token_endpoint=f"{_ENTRA}/{TENANT}/oauth2/v2.0/token",
                jwks_uri=f"{_ENTRA}/{TENANT}/discovery/v2.0/keys",
                token_auth_methods=("client_secret_post", "client_secret_basic"),
                offline_access=True,
            ),
            [TENANT, "login.microsoftonline.com"],
        ),
        (
            Endpoints(
                issuer=f"{_B2C}/{TENANT}/v2.0/",
                authorization_endpoint=f"{_B2C}/morpork.onmicrosoft.com/b2c_1_watch/oauth2/v2.0/authorize",
                token_endpoint=f"{_B2C}/{TENANT}/v2.0/token?p=b2c_1_watch",
            ),
            [TENANT, "morpork", "b2c_1_watch"],
        ),
        (
            Endpoints(
                issuer="https://id.example/realms/morpork",
                authorization_endpoint="https://login.example/morpork/authorize",
                token_endpoint="https://id.example/token/morpork",
            ),
            ["morpork", "id.example", "login.example"],
        ),
    ],
)
async def test_no_url_of_a_vector_names_the_tenant(endpoints: Endpoints, names: list[str]) -> None:
    issuer = endpoints.issuer or ""
    host = "morpork.onmicrosoft.com" if "b2c" in endpoints.token_endpoint else "api.example"
    refusal = {"error": "invalid_grant", "message": f"{issuer}/keys or https://{host}/ of {TENANT}"}
    text = await vector_text(endpoints, (f"https://{host}/read", f"api://{TENANT}/read"), (refusal,))
    assert [name for name in names if name in text.replace("idp.example", "")] == [], text
    assert "url: https://idp.example/token\n" in text
    assert list(shape_problems(a_spec(), yaml.safe_load(text))) == []


def test_a_name_is_known_before_the_first_field_of_its_reply_is_written() -> None:
    reply = {"message": "Jane Doe may not", "errors": ["no Jane"], "user": {"name": "Jane Doe"}}
    written = Redactor().fields(reply, KeptFields((), None, (), {}, error=True))
    assert written["message"] == "redacted may not"
    assert written["errors"] == ["no redacted"]


async def test_a_name_is_known_before_the_first_reply_of_its_trial_is_written() -> None:
    said = ({"error": "Jane may not"}, {"error": "invalid_grant", "user": {"name": "Jane Doe"}})
    endpoints = Endpoints(
        token_endpoint="https://a.example/token", authorization_endpoint="https://a.example"
    )
    text = await vector_text(endpoints, said=said)
    assert "Jane" not in text
    assert "error: redacted may not" in text


def test_a_code_that_an_error_repeats_is_no_name() -> None:
    reply = {"error": "invalid_grant", "errorCode": "invalid_grant", "code": 70008, "error_codes": [70008]}
    written = Redactor().fields(reply, KeptFields((), None, (), {}, error=True))
    assert (written["error"], written["code"]) == ("invalid_grant", 70008)
