"""The two legs of an identity provider's grant (draft-ietf-oauth-identity-assertion-authz-grant)."""

import json
from typing import Any

import pytest

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from providers.registration.discovery import ID_JAG_PROFILE, _takes_id_jags
from providers.requests.id_jag import ID_JAG, read_id_jag, read_id_jag_tokens
from providers.responses.raw_reply import RawReply
from tests.unit.providers.samples import NOW, spec_like

SPEC = spec_like()
GOOD = {"access_token": "aaa.bbb.ccc", "issued_token_type": ID_JAG, "token_type": "N_A"}
REFUSED, NEEDED = ErrorCode.ID_JAG_REFUSED, ErrorCode.IDENTITY_NEEDED


def reply(body: Any, status: int = 200) -> RawReply:
    return RawReply(status, {"content-type": "application/json"}, json.dumps(body).encode())


def test_id_jag_4_3_3_the_grant_of_a_reply() -> None:
    assert read_id_jag(SPEC, reply(GOOD), NOW).reveal() == "aaa.bbb.ccc"


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"issued_token_type": "urn:ietf:params:oauth:token-type:access_token"}, 200, None),
        ({"issued_token_type": None}, 200, None),
        ({"access_token": "opaque"}, 200, None),
        ({"access_token": ["aaa.bbb.ccc"]}, 200, None),
        ({"error": "access_denied"}, 403, REFUSED),
        ({"error": "invalid_grant"}, 400, REFUSED),
        ({"error": "invalid_target"}, 400, REFUSED),
        ({"error": "invalid_scope"}, 400, REFUSED),
        ({"error": "insufficient_user_authentication"}, 400, NEEDED),
        ({"error": "login_required"}, 400, NEEDED),
        ({"error": "invalid_client"}, 401, ErrorCode.CLIENT_REJECTED),
        ({"error": "server_error"}, 503, ErrorCode.PROVIDER_ERROR),
    ],
)
def test_id_jag_4_3_a_token_of_another_type_and_each_refusal(
    changes: dict[str, Any], status: int, code: ErrorCode | None
) -> None:
    with pytest.raises(Failure) as refused:
        read_id_jag(SPEC, reply(GOOD | changes, status), NOW)
    assert refused.value.code is (code or ErrorCode.REPLY_UNREADABLE)
    assert "aaa.bbb" not in str(refused.value)


def test_id_jag_4_4_a_refusal_of_the_issuer_is_no_dead_grant() -> None:
    with pytest.raises(Failure) as refused:
        read_id_jag_tokens(SPEC, reply({"error": "invalid_grant"}, 400), requested_scopes=(), now=NOW)
    assert refused.value.code is REFUSED


@pytest.mark.parametrize(
    ("listed", "takes"),
    [
        ({}, None),
        ({"authorization_grant_profiles_supported": [ID_JAG_PROFILE]}, True),
        ({"authorization_grant_profiles_supported": []}, False),
        ({"authorization_grant_profiles_supported": "all"}, False),
    ],
)
def test_id_jag_7_2_what_an_issuer_lists(listed: dict[str, Any], takes: bool | None) -> None:
    assert _takes_id_jags(listed) is takes
    assert Endpoints(token_endpoint="x").takes_id_jags is None
