"""Permits that name methods and paths of a provider's API."""

import pytest

from evergrant_server.core.access import Action
from evergrant_server.policy import NO_TOOL, DecisionReason, PermitDecision, ProxiedRequest, may_see
from tests.fakes.databases import NOW
from tests.unit.policy.test_policy import deny, judge, permit, question

ALLOWED, DENIED = DecisionReason.ALLOWED, DecisionReason.DENIED
REFUSED = DecisionReason.REQUEST_NOT_PERMITTED


def asks(permits: list, method: str, path: str, **more) -> PermitDecision:
    return judge(permits, action=Action.PROXY, request=ProxiedRequest(method, path), **more)


@pytest.mark.parametrize(
    ("fields", "method", "path", "reason"),
    [
        ({}, "DELETE", "/anything", ALLOWED),  # a permit without them: proxying is an action of its own
        ({"methods": ("GET", "HEAD")}, "GET", "/x", ALLOWED),
        ({"methods": ("GET",)}, "POST", "/x", REFUSED),
        ({"methods": ("GET",)}, "HEAD", "/x", REFUSED),
        ({"paths": ("/user",)}, "GET", "/user", ALLOWED),
        ({"paths": ("/user",)}, "GET", "/user/", REFUSED),
        ({"paths": ("/user",)}, "GET", "/USER", REFUSED),
        ({"paths": ("/user",)}, "GET", "/user;v=1", REFUSED),
        ({"paths": ("/user",)}, "GET", "/user/keys", REFUSED),
        ({"paths": ("/repos/*/issues",)}, "GET", "/repos/a/issues", ALLOWED),
        ({"paths": ("/repos/*/issues",)}, "GET", "/repos//issues", REFUSED),
        ({"paths": ("/repos/*/issues",)}, "GET", "/repos/a/b/issues", REFUSED),
        ({"paths": ("/repos/**",)}, "GET", "/repos", ALLOWED),
        ({"paths": ("/repos/**",)}, "GET", "/repos/a/b/", ALLOWED),
        ({"paths": ("/repos/**",)}, "GET", "/repositories", REFUSED),
        ({"paths": ("/**",)}, "GET", "/", ALLOWED),
        ({"paths": ("/a", "/b")}, "GET", "/b", ALLOWED),
    ],
)
def test_an_allow_fits_exactly_what_it_names(fields, method, path, reason):
    assert asks([permit(actions=(Action.PROXY,), **fields)], method, path).reason is reason


@pytest.mark.parametrize(
    "path", ["/admin", "/ADMIN/", "/admin;v=1/x", "//admin", "/admin//x", "/Admin/users"]
)
def test_a_deny_fits_what_a_lenient_server_would_take_for_it(path):
    permits = [permit(actions=(Action.PROXY,)), deny(actions=(Action.PROXY,), paths=("/admin/**",))]
    assert asks(permits, "GET", path).reason is DENIED
    assert asks(permits, "GET", "/administration").reason is ALLOWED


def test_what_is_not_known_fits_no_allow_and_every_deny():
    both = {"methods": ("GET",), "paths": ("/a",)}
    proxies = permit(actions=(Action.PROXY,))
    assert judge([permit(actions=(Action.PROXY,), **both)], action=Action.PROXY).reason is REFUSED
    assert judge([proxies, deny(actions=(Action.PROXY,), **both)], action=Action.PROXY).reason is DENIED


@pytest.mark.parametrize(
    ("tools", "tool", "allowed", "denied"),
    [
        (("safe",), "safe", True, True),
        (("safe",), "SAFE", False, True),
        (("safe",), "safer", False, False),
        (("search_*",), "search_mail", True, True),
        (("*",), "any", True, True),
        (("safe",), NO_TOOL, True, False),  # initialize, tools/list: no client works without them
        (("safe",), None, False, True),  # a method of the server's own, or one that can't be read
    ],
)
def test_a_permit_names_tools_of_mcp_servers(tools, tool, allowed, denied):
    request = ProxiedRequest("POST", "/", tool)
    only = permit(actions=(Action.PROXY,), tools=tools)
    assert judge([only], action=Action.PROXY, request=request).allowed is allowed
    others = [permit(actions=(Action.PROXY,)), deny(actions=(Action.PROXY,), tools=tools)]
    assert judge(others, action=Action.PROXY, request=request).allowed is not denied
    assert may_see(others, question().target, NOW, None), "the deny leaves other tools"


def test_to_lease_a_token_is_not_to_proxy_nor_the_other_way_round():
    asked = question(action=Action.PROXY)
    assert asks([permit(actions=(Action.TOKEN,))], "GET", "/").reason is DecisionReason.ACTION_NOT_PERMITTED
    assert judge([permit(actions=(Action.PROXY,))]).reason is DecisionReason.ACTION_NOT_PERMITTED
    permits = [permit(actions=(Action.PROXY,)), deny(actions=(Action.PROXY,), paths=("/admin",))]
    assert may_see(permits, asked.target, NOW, None), "the deny leaves other paths"


def test_a_permit_without_approval_is_taken_where_both_allow_it():
    demands = permit(name="a", actions=(Action.PROXY,), call_approval=True)
    free = permit(name="b", actions=(Action.PROXY,), methods=("GET",))
    assert asks([demands, free], "POST", "/x").permit == demands
    for permits in ([demands, free], [free, demands]):
        assert asks(permits, "GET", "/x").permit == free
    assert not asks([demands, deny(actions=(Action.PROXY,))], "POST", "/x").allowed
