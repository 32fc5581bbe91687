"""Discovery of a protected resource's issuer (RFC 9728), against a scripted MCP server."""

import json
from typing import Any

import pytest

from evergrant_server.core.errors import ErrorCode
from evergrant_server.egress import Egress, EgressPolicy
from providers.registration.protected_resource import (
    ProtectedResource,
    discover_resource,
    is_same_resource,
)
from tests.fakes.providers.scripted_mcp import ScriptedMcp
from tests.fakes.providers.scripted_provider import drop, raw, status
from tests.unit.providers.samples import fails


async def discovered(server: ScriptedMcp, url: str | None = None) -> ProtectedResource:
    return await discover_resource(Egress(EgressPolicy(allow=(server.allowance,))), url or server.mcp)


def targets(server: ScriptedMcp) -> list[str]:
    return [call.target for call in server.calls]


async def test_rfc9728_5_1_the_challenge_names_the_metadata_and_the_scopes() -> None:
    async with ScriptedMcp() as server:
        server.challenge = f'Bearer resource_metadata="{server.origin}/about", scope="files:read"'
        server.about = {"scopes_supported": ["files:write"]}
        found = await discovered(server)
        assert found == ProtectedResource(server.mcp, (server.issuer,), ("files:read",))
        assert targets(server) == ["/mcp", "/about"]
        (probe, document) = server.calls
        assert json.loads(probe.body)["method"] == "tools/list"
        assert not {"authorization", "cookie"} & (probe.headers.keys() | document.headers.keys())


async def test_rfc9728_3_1_the_well_known_url_with_the_path_comes_before_that_without() -> None:
    async with ScriptedMcp() as server:
        server.about = {"scopes_supported": ["a", "a", "b c", 7, "d"]}
        assert (await discovered(server)).scopes == ("a", "d")
        server.script(status(404), at="metadata")
        await discovered(server)
        well_known = "/.well-known/oauth-protected-resource"
        assert targets(server) == [*("/mcp", f"{well_known}/mcp"), *("/mcp", f"{well_known}/mcp", well_known)]


@pytest.mark.parametrize("resource", ["{origin}", "{origin}/", "{origin}/mcp"])
async def test_rfc9728_3_3_the_root_s_metadata_is_about_the_origin_or_this_resource(resource: str) -> None:
    async with ScriptedMcp() as server:
        server.script(status(404), at="metadata")
        server.about = {"resource": resource.format(origin=server.origin)}
        found = await discovered(server)
        assert found.resource == server.about["resource"]  # as it is spelt


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"authorization_servers": []}, "no authorization_servers"),
        ({"authorization_servers": "https://a"}, "no authorization_servers"),
        ({"authorization_servers": [7]}, "not a URL"),
        ({"authorization_servers": None}, "no authorization_servers"),
        ({"resource": None}, "another resource"),
        ({"resource": 7}, "another resource"),
        (None, "no protected resource metadata"),
    ],
)
async def test_unusable_metadata_is_refused(about: Any, said: str) -> None:
    async with ScriptedMcp() as server:
        server.about = about
        with fails(ErrorCode.DISCOVERY_FAILED, said):
            await discovered(server)


@pytest.mark.parametrize("answer", [status(200), status(400), status(403), raw(b"{}", 405)])
async def test_a_server_that_challenges_nothing_is_known_by_its_well_known_url(answer: Any) -> None:
    async with ScriptedMcp() as server:
        server.script(answer, at="mcp")
        assert (await discovered(server)).issuers == (server.issuer,)


async def test_a_server_that_gives_no_answer_may_be_tried_later() -> None:
    async with ScriptedMcp() as server:
        server.script(drop(), at="mcp")
        with fails(ErrorCode.PROVIDER_UNREACHABLE, "is it running"):
            await discovered(server)
        server.script(status(503), at="metadata")
        with fails(ErrorCode.PROVIDER_ERROR, "503"):
            await discovered(server)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://h.example", "https://h.example/", True),
        ("HTTPS://H.example:443/mcp", "https://h.example/mcp", True),
        ("https://h.example/mcp", "https://h.example/mcp/", False),
        ("https://h.example/mcp", "https://h.example/MCP", False),
        ("https://h.example/mcp", "http://h.example/mcp", False),
        ("https://h.example/mcp", "https://h.example/mcp#", False),
        ("https://h.example/mcp", "https://u@h.example/mcp", False),
        ("https://h.example/mcp", "https://h.example:x/mcp", False),
        ("https://h.example/mcp", "https://h.example/mcp?a", False),
    ],
)
def test_rfc3986_6_2_identifiers_of_the_same_resource(one: str, other: str, same: bool) -> None:
    assert is_same_resource(one, other) is same
