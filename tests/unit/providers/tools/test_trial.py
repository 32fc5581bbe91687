"""`providers try`: what it sees, what it writes, what it never shows, and that it leaves no grant behind."""

import json
from typing import Any

import pytest

from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.secret import Secret
from providers.tools.trial.receivers import PastedCallback
from tests.fakes.providers.scripted_provider import ScriptedProvider, drop_after_commit, error, html, ok, raw
from tests.unit.providers.samples import fails
from tests.unit.providers.tools.trials import (
    SOURCE,
    EchoingProvider,
    a_spec,
    assert_vector_holds,
    callback_of,
    live,
    visit,
    walked,
    with_flow,
)


async def test_a_whole_trial_leaves_no_grant_and_a_vector_that_holds() -> None:
    spec = a_spec()
    async with ScriptedProvider() as server:
        ended = await walked(server, spec, wrong_secret=True, second_grant=True)
        assert (live(server), ended.failure) == ([False, False], None)
        assert ended.told[-1] == "All grants that were obtained are revoked."
        assert [step for step, it in ended.steps.items() if it.differs] == ["reach"]  # which it leaves open
        assert ended.steps["reach"].differs == ["revocation.reach would be token"]
        assert "a new refresh token" in ended.steps["refresh"].saw
        assert ended.steps["introspection"].saw == [
            "after the revocation the access token is no longer active"
        ]
        assert ended.vector["exchange"]["source"] == SOURCE
        await assert_vector_holds(spec, ended.vector)
        assert {it["of"] for it in ended.vector["refusals"]} == {"dead_token", "client"}


@pytest.mark.parametrize(
    ("fields", "rotation", "script", "step", "differs"),
    [
        ({"refresh_rotates": False}, "strict", [], "refresh", "refresh_rotates would be true"),
        ({"refresh_rotates": True}, "none", [], "refresh", "refresh_rotates would be false"),
        ({"access_token_lifetime_s": 60}, "strict", [], "exchange", "access_token_lifetime_s would be 3600"),
        ({"refresh_supported": False}, "strict", [], "exchange", "refresh_supported is false"),
        ({}, "strict", [ok(refresh_token="")], "exchange", "no refresh token came"),
        ({}, "strict", [ok(scope="write")], "exchange", "requested and not granted: read"),
        (
            {},
            "strict",
            [ok(), ok(), error("token_dead")],
            "dead refresh token (altered)",
            "terminal_error_codes",
        ),
        (
            {},
            "strict",
            [ok(), ok(), raw(b'{"access_token": "other-1", "refresh_token": "other-2"}')],
            "dead refresh token (altered)",
            "it was accepted, and a refusal was expected",
        ),
    ],
)
async def test_what_differs_from_the_definition_is_said(
    fields: dict[str, Any], rotation: Any, script: list[Any], step: str, differs: str
) -> None:
    async with ScriptedProvider(rotation=rotation) as server:
        server.script(*script)
        ended = await walked(server, a_spec(**fields))
        assert any(differs in line for line in ended.steps[step].differs), ended.steps[step]
        assert not any(live(server))


async def test_a_second_use_of_a_refresh_token_shows_that_the_family_ends() -> None:
    async with ScriptedProvider() as server:
        ended = await walked(server, reuse=True)
    assert ended.steps["second use"].differs == ["on_reuse would be family_revoked"]


async def test_a_dead_token_is_written_as_dead_however_it_is_read() -> None:
    async with ScriptedProvider() as server:
        server.script(ok(), ok(), raw(b'{"fault": {"name": "gone", "user": "sam"}}', 400))
        ended = await walked(server)
    refusal = ended.vector["refusals"][-1]
    assert refusal["code"] == "grant_rejected"
    assert refusal["reply"]["json"]["fault"] == {"name": "redacted", "user": "redacted"}


async def test_no_secret_and_no_name_is_shown_or_written_though_the_provider_quotes_them() -> None:
    async with EchoingProvider() as server:
        server.client_id, server.client_secret = "the-client-of-sam", "canary-of-the-client"
        ended = await walked(server, wrong_secret=True, reuse=True, second_grant=True)
        assert ended.failure is None
        secrets = {
            server.client_secret,
            "Sam Vimes",
            "sybil@example.org",
            "sam.vimes",
            "4711001",
            "203.0.113.7",
        }
        secrets |= {"Vimes", "sybil", "u-4711", "patrician", "\x1b[2J", "c2lnbmF0dXJl"}
        for call in server.calls:
            secrets |= {value for name, value in call.params.items() if name not in PUBLIC}
            secrets |= {call.headers.get("authorization", "").removeprefix("Basic ")}
        for family in server.families:
            secrets |= {family.refresh_token, *family.used, *family.access_tokens}
        secrets.discard("")
        shown = ended.shown()
        assert len(secrets) > 12
        # whole, and every part of eight characters of what isn't a word
        parts = {
            it[at : at + 8] for it in secrets if " " not in it and "@" not in it for at in range(len(it) - 7)
        }
        assert [it for it in (*secrets, *parts) if it in shown] == []
        assert "70008" in shown
        assert ended.vector["refusals"]


PUBLIC = (
    *("grant_type", "token_type_hint", "redirect_uri", "client_id", "scope", "response_type"),
    *("code_challenge_method", "code_challenge"),
)


@pytest.mark.parametrize(
    "answer", [html(), raw(b"", 200), raw(b'{"access_token": ["a"]}'), error("invalid_client", 401)]
)
async def test_an_unreadable_or_refused_exchange_ends_the_trial_by_name(answer: Any) -> None:
    async with ScriptedProvider() as server:
        server.script(answer)
        ended = await walked(server)
        assert ended.failure is not None
        assert ended.failure.code in (ErrorCode.REPLY_UNREADABLE, ErrorCode.CLIENT_REJECTED)
        assert ended.steps["exchange"].differs == ["tokens were expected"]


async def test_tokens_of_a_reply_that_cannot_be_read_are_revoked_too() -> None:
    async with ScriptedProvider() as server:
        server.script(ok(token_type="mac"))
        ended = await walked(server)
        assert ended.failure is not None
        assert (ended.failure.code, live(server)) == (ErrorCode.REPLY_UNREADABLE, [False])


@pytest.mark.parametrize("requests", [1, 2, 3])
async def test_a_trial_that_is_interrupted_revokes_what_it_obtained(requests: int) -> None:
    """Also when the interruption comes while a reply with tokens is under way."""
    async with ScriptedProvider() as server:
        ended = await walked(server, cancel_at=("token", requests))
        assert live(server) == [False]
        assert ended.told[-1] == "All grants that were obtained are revoked."


@pytest.mark.parametrize("before", [[], [ok()]])
async def test_a_lost_reply_is_no_confirmed_end(before: list[Any]) -> None:
    async with ScriptedProvider() as server:
        server.script(*before, drop_after_commit())
        ended = await walked(server)
        assert ended.failure is not None
        assert ended.failure.code is ErrorCode.PROVIDER_UNREACHABLE
        assert ended.told[-1].startswith("A reply was lost that may have had tokens")
        assert not any("All grants" in line for line in ended.told)


async def test_a_revocation_that_fails_is_said() -> None:
    async with ScriptedProvider() as server:
        server.script(*[raw(b"", 503)] * 9, at="revoke")
        ended = await walked(server)
        assert ended.told[-1].startswith("NOT revoked: 1 of 1 grants (acme answered with status 503)")
        assert ended.steps["revocation"].differs == ["the revocation was not confirmed"]


@pytest.mark.parametrize("answer", [html(404), raw(b"", 410), raw(b"", 422), error("invalid_token")])
async def test_a_wrong_revocation_endpoint_is_no_end_of_a_grant(answer: Any) -> None:
    """An endpoint that doesn't exist answers as some servers do for a token that is gone."""
    async with ScriptedProvider() as server:
        server.script(*[answer] * 9, at="revoke")
        ended = await walked(server)
        assert live(server) == [True]
        assert ended.told[-1].startswith("NOT revoked: 1 of 1 grants"), ended.told
        assert ended.told[-1].endswith("End them in your account's settings at the provider.")


async def test_a_denied_consent_and_an_error_of_the_authorization_endpoint() -> None:
    for name, code in (
        ("access_denied", ErrorCode.CONSENT_DENIED),
        ("invalid_scope", ErrorCode.CLIENT_REJECTED),
    ):

        async def refuse(url: str, name: str = name) -> None:
            await visit(callback_of(url, error=name))

        async with ScriptedProvider() as server:
            ended = await walked(server, browse=refuse)
        assert ended.failure is not None
        assert (ended.failure.code, ended.told[-1][:4]) == (code, "If n")


async def test_a_callback_with_another_state_is_ignored_and_the_right_one_counts() -> None:
    async def with_a_wrong_one_first(url: str) -> None:
        for wrong in ({"state": "x" * 43}, {"state": ""}, {"code": "evil", "state": "y"}):
            await visit(callback_of(url, **wrong))
        await visit(url)

    async with ScriptedProvider() as server:
        ended = await walked(server, browse=with_a_wrong_one_first)
        assert (ended.failure, server.calls[0].endpoint) == (None, "authorize")
    assert sum("An answer was ignored" in line for line in ended.told) == 3


async def test_a_consent_that_never_comes_back_is_given_up() -> None:
    async def close_the_page(url: str) -> None: ...

    async with ScriptedProvider() as server:
        ended = await walked(server, browse=close_the_page, wait_s=0.05)
    assert ended.failure is not None
    assert ended.failure.code is ErrorCode.CONSENT_EXPIRED


async def test_the_device_flow_polls_until_the_user_agrees() -> None:
    spec = a_spec(auth_modes=["authorization_code", "device_code"])
    codes = {"device_code": "canary-device", "user_code": "WDJB", "verification_uri": "https://a.example/d"}
    async with ScriptedProvider() as server:
        server.script(raw(json.dumps({**codes, "expires_in": 60, "interval": 0}).encode()), at="device")
        granted = raw(json.dumps(server.grant()).encode())
        server.script(error("authorization_pending"), granted)
        ended = await walked(server, spec, change=with_flow(Flow.DEVICE_CODE, server))
        assert (ended.failure, live(server)) == (None, [False])
    assert ended.told[0] == "Open https://a.example/d in your browser and enter WDJB"
    assert {"refresh", "revoke", "refusals"} <= ended.vector.keys()
    assert "canary-device" not in ended.shown()


async def test_client_credentials_are_tried_without_a_browser() -> None:
    spec = a_spec(auth_modes=["client_credentials"])
    async with ScriptedProvider() as server:
        reply = {name: value for name, value in server.grant().items() if name != "refresh_token"}
        server.script(raw(json.dumps(reply).encode()))
        ended = await walked(server, spec, change=with_flow(Flow.CLIENT_CREDENTIALS, server))
        assert (ended.failure, live(server), list(ended.steps)[:2]) == (
            None,
            [False],
            ["exchange", "revocation"],
        )


async def test_a_redirect_uri_elsewhere_is_pasted() -> None:
    asked: list[str] = []
    state = Secret("s" * 43)
    lines = iter(
        [
            "https://app.example/back?code=c&state=other\n",
            f"https://app.example/back?code=c&state={'s' * 43}\n",
            "",
        ]
    )
    receiver = PastedCallback("https://app.example/back", lambda _: False, asked.append, lambda: next(lines))
    assert ("code", "c") in await receiver.receive("https://a.example/authorize", state)
    assert "another request" in asked[-1]
    with fails(ErrorCode.CONSENT_EXPIRED):
        await receiver.receive("https://a.example/authorize", state)
