"""DPoP proofs (RFC 9449), and nonces that cost no second use of a credential."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from evergrant_server.core.connections.credentials import ProofKey
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import new_proof_key
from providers.requests.dpop import dpop_proof, nonce_in, require_dpop_algorithm, wants_dpop
from providers.requests.sender import SendFailed
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import read_tokens
from tests.conformance.store.samples import a_grant
from tests.fakes.providers.scripted_provider import ScriptedProvider, raw
from tests.unit.providers.requests.test_sender import Talk
from tests.unit.providers.samples import an_integration, fails, reply_of, spec_like

AT = datetime(2026, 5, 1, tzinfo=UTC)
KEY = new_proof_key()
BOUND = spec_like(dpop=True)


def opened(made: str, key: ProofKey = KEY) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims, verified with the key that the proof itself names."""
    token = jwt.decode(made, ECKey.import_key(dict(key.public)), algorithms=["ES256"])
    return token.header, token.claims


def test_rfc9449_4_2_proof():
    header, claims = opened(dpop_proof(KEY, "post", "https://s.example/token?a=b#c", AT, nonce="n"))
    assert header == {"typ": "dpop+jwt", "alg": "ES256", "jwk": KEY.public}
    assert set(header["jwk"]) == {"kty", "crv", "x", "y"}  # and nothing of the private half
    jti = claims.pop("jti")
    expected = {"htm": "POST", "htu": "https://s.example/token", "iat": int(AT.timestamp()), "nonce": "n"}
    assert claims == expected
    assert opened(dpop_proof(KEY, "POST", "https://s.example/token", AT))[1]["jti"] != jti
    assert KEY.thumbprint == ECKey.import_key(dict(KEY.public)).thumbprint()


def test_rfc9449_7_1_access_token_hash():
    token = Secret("Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU")
    _, claims = opened(dpop_proof(KEY, "GET", "https://resource.example.org/r", AT, access_token=token))
    assert claims["ath"] == "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"


def test_proof_key_repr_hides_private_part():
    private = json.loads(KEY.private.reveal())["d"]
    assert private not in repr(KEY)
    assert ProofKey.from_secret(KEY.as_secret()) == KEY
    with pytest.raises(Exception, match=r"[Ss]ecret"):
        KEY.model_dump_json()


@pytest.mark.parametrize(
    ("kind", "dpop", "read"),
    [
        ("DPoP", True, "DPoP"),
        ("dpop", True, "DPoP"),
        ("Bearer", True, None),  # section 5: it must be discarded
        (None, True, None),
        ("Bearer", False, "Bearer"),
        ("DPoP", False, None),  # an app couldn't use it
    ],
)
def test_rfc9449_5_token_type_must_be_as_requested(kind: str | None, dpop: bool, read: str | None):
    reply = reply_of({"access_token": "a", "token_type": kind})
    with nullcontext() if read is not None else fails(ErrorCode.REPLY_UNREADABLE):
        tokens = read_tokens(spec_like(dpop=dpop), reply, requested_scopes=(), refreshing=False)
        assert tokens.token_type == read


@pytest.mark.parametrize(
    ("says", "defined", "held", "auth", "bound"),
    [
        (None, False, None, None, False),
        (None, True, None, None, True),
        (None, False, "DPoP", None, True),  # its refresh token may be bound as well
        (None, True, "Bearer", None, True),
        (False, True, "DPoP", None, False),
        (True, False, None, None, True),
        (False, True, "DPoP", "none", True),  # a public client's grant stays bound
        (False, True, None, "none", False),
    ],
)
def test_rfc9449_5_dpop_by_integration_definition_grant_and_client(
    says: bool | None, defined: bool, held: str | None, auth: str | None, bound: bool
):
    grant = None if held is None else a_grant(1, token_type=held)
    ours = an_integration("generic", dpop=says, client_auth=auth)
    assert wants_dpop(spec_like(dpop=defined), ours, grant) is bound


def test_rfc9449_5_1_unsupported_algorithm_refused():
    require_dpop_algorithm(BOUND, Endpoints(token_endpoint="https://s.example/t"))
    require_dpop_algorithm(BOUND, Endpoints(token_endpoint="https://s.example/t", dpop_algorithms=("ES256",)))
    with fails(ErrorCode.CLIENT_REJECTED):
        require_dpop_algorithm(BOUND, Endpoints(token_endpoint="t", dpop_algorithms=("EdDSA",)))


@pytest.mark.parametrize("said", ["", 'a"b', "a\\b", "a b", "ü", "x" * 2000])
def test_rfc9449_8_1_invalid_nonce_ignored(said: str):
    assert nonce_in(RawReply(400, {"dpop-nonce": said}, b"{}")) is None


class BoundTalk(Talk):
    """A client with a proof key, and a sender that remembers nonces."""

    def __init__(self, idp: ScriptedProvider) -> None:
        super().__init__(idp)
        self.client = replace(self.client, proof_key=KEY)
        self.checks = 0

    async def ask(self, token: str, check: Callable[[], None] | None = None) -> RawReply:
        def counted() -> None:
            self.checks += 1
            if check is not None:
                check()

        return await self.refresh(token, BOUND, before_send=counted)

    @property
    def nonces(self) -> list[str | None]:
        sent = [call.headers["dpop"] for call in self.idp.calls if call.endpoint == "token"]
        return [opened(made)[1].get("nonce") for made in sent]


def wants(nonce: str, status: int = 400) -> Any:
    headers = {"Content-Type": "application/json", "DPoP-Nonce": nonce}
    return raw(b'{"error": "use_dpop_nonce"}', status, headers)


async def test_rfc9449_8_request_repeated_with_nonce() -> None:
    async with ScriptedProvider() as idp:
        talk, grant = BoundTalk(idp), idp.grant()
        idp.script(wants("n-1"))
        reply = await talk.ask(grant["refresh_token"])
        assert reply.status == 200
        assert talk.nonces == [None, "n-1"]
        assert talk.checks == 2  # `send_by` and the fence count for the second as well
        await talk.ask(json.loads(reply.body)["refresh_token"])
        assert talk.nonces == [None, "n-1", "n-1"]  # remembered


async def test_rfc9449_8_request_repeated_only_once() -> None:
    async with ScriptedProvider() as idp:
        talk, grant = BoundTalk(idp), idp.grant()
        idp.script(wants("n-1"), wants("n-2"))
        reply = await talk.ask(grant["refresh_token"])
        assert (reply.status, talk.nonces) == (400, [None, "n-1"])
        assert (await talk.ask(grant["refresh_token"])).status == 200  # it was never spent
        assert talk.nonces[-1] == "n-2"


async def test_repeated_request_stopped_by_before_send() -> None:
    async with ScriptedProvider() as idp:
        talk, grant = BoundTalk(idp), idp.grant()
        idp.script(wants("n-1"))

        def too_late_the_second_time() -> None:
            if talk.checks == 2:
                raise Failure(ErrorCode.REFRESH_PENDING, "too late to send")

        with pytest.raises(SendFailed) as stopped:
            await talk.ask(grant["refresh_token"], too_late_the_second_time)
        assert (stopped.value.sent, stopped.value.code) == (False, ErrorCode.REFRESH_PENDING)
        assert (await talk.ask(grant["refresh_token"])).status == 200


async def test_no_proof_in_a_revocation() -> None:
    async with ScriptedProvider() as idp:
        talk, grant = BoundTalk(idp), idp.grant()
        await talk.revoke(Secret(grant["refresh_token"]), BOUND)
        assert "dpop" not in idp.calls[-1].headers
