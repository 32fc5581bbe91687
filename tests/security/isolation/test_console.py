"""The console with another tenant's ids: each route answers as for absent ones, byte for byte.

For a key that may do everything in every run, for each role in `make soak`.
"""

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.people.roles import PersonRole
from tests.fakes.api import Api
from tests.security.console import ConsoleBrowser, at_console, person_at_console
from tests.security.isolation.routes import CONSOLE_FORMS, console_routes, requests_to
from tests.security.isolation.test_other_tenants import MADE, TENANTS, headers_of, rows_of
from tests.security.isolation.world import a_world, absent
from tests.security.people import ORIGIN


@pytest.mark.parametrize(
    "who",
    [
        "key",
        *(pytest.param(role, marks=pytest.mark.soak) for role in PersonRole),
    ],
)
async def test_another_tenants_ids_are_absent_on_each_console_route(api: Api, who: str):
    ours, theirs = TENANTS[:2]
    own, foreign = await a_world(api, ours), await a_world(api, theirs)
    api.link.events = {None: []}
    if who == "key":
        browser = await at_console(api, await api.app_with("caller", *Action, tenant=ours))
    else:
        browser = await person_at_console(api, PersonRole(who), ours)
    csrf = await browser.csrf("/console/connections")
    before, compared = await rows_of(api, theirs), 0
    for route in console_routes(api.app):
        for request in requests_to(route):
            for mix in request.mixes():
                statuses = set()
                for values in (foreign, absent(foreign)):
                    taken = {**own, **{name: values[name] for name in mix}}
                    url = request.sent(taken)["url"]
                    statuses.add(await _answer(browser, csrf, url, request.route, taken))
                assert len(statuses) == 1, (request, mix)
                compared += 1
    assert compared >= len(CONSOLE_FORMS)
    assert await rows_of(api, theirs) == before


async def _answer(
    browser: ConsoleBrowser, csrf: str, url: str, route: str, values: dict[str, str]
) -> tuple[int, str, str]:
    """Status, headers and page, without the names that were sent."""
    method = route.partition(" ")[0]
    if method == "GET":
        answer = await browser.browser.get(url)
    else:
        form = {name: text.format_map(values) for name, text in CONSOLE_FORMS[route].items()}
        answer = await browser.browser.post(url, data={"csrf": csrf, **form}, headers={"Origin": ORIGIN})
    headers, page = str([it for it in headers_of(answer) if it[0] != "content-length"]), answer.text
    for value in sorted(values.values(), key=len, reverse=True):  # a name may be part of another
        headers, page = headers.replace(value, "(name)"), page.replace(value, "(name)")
    return answer.status_code, MADE.sub("(made)", headers), MADE.sub("(made)", page)


async def test_lists_of_the_console_show_nothing_of_another_tenant(api: Api):
    ours, theirs = TENANTS[:2]
    own, foreign = await a_world(api, ours), await a_world(api, theirs)
    browser = await at_console(api, await api.app_with("caller", *Action, tenant=ours))
    for route in console_routes(api.app):
        if route.startswith("GET ") and "{" not in route:
            page = await browser.page(route.removeprefix("GET "))
            assert not [it for it in foreign.values() if it in page and it not in own.values()], route
