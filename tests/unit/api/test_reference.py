"""`/docs`: in the guide's order, with an example of each route that the API accepts; and logos."""

import re
from pathlib import Path

from evergrant_server.api.examples import BODIES, example_of
from evergrant_server.api.openapi import METHODS
from evergrant_server.console.logos import Logos
from evergrant_server.core.access import Action
from tests.fakes.api import Api, running_api
from tests.fakes.visitor import Visitor

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


async def test_each_route_has_an_example_whose_body_is_one_of_its_schema(api: Api):
    from jsonschema import Draft202012Validator  # two seconds that other processes of the run save

    schema = api.app.openapi()
    page = (await api.get("/docs")).text
    described = set()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            if method not in METHODS:
                continue
            route = f"{method.upper()} {path}"
            described.add(route)
            assert f'aria-label="{route}"' in page, route
            assert example_of(method.upper(), path, operation).startswith("curl"), route
            body = operation.get("requestBody", {})
            content = body.get("content", {}).get("application/json")
            if route in BODIES:
                wanted = {**content["schema"], "components": schema["components"]}
                errors = [it.message for it in Draft202012Validator(wanted).iter_errors(BODIES[route])]
                assert errors == [], route
            else:
                assert content is None or not body.get("required") or route in BY_PROVIDERS, route
    assert set(BODIES) <= described


BY_PROVIDERS = {"POST /v1/security-events/{receiver_id}"}


async def test_routes_come_in_the_guides_order_and_their_words_are_whole(api: Api):
    page = (await api.get("/docs")).text
    places = [page.index(f'aria-label="{it}"') for it in (
        "PUT /v1/integrations/{name}", "PUT /v1/apps/{name}", "POST /v1/connections", "POST /v1/lease",
        "PUT /v1/webhooks/{name}", "GET /connect/{link}", "GET /livez",
    )]  # fmt: skip
    assert places == sorted(places)
    assert "`" not in re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL)
    assert "EVERGRANT_API_KEY" not in example_of("GET", "/livez", {})


async def test_pages_show_an_operators_logos_or_monograms_and_a_logo_runs_nothing(tmp_path: Path):
    (tmp_path / "logos").mkdir()
    for name in ("app-acme-asker.svg", "provider-gitlab.png", "app-acme-2-asker.svg"):
        (tmp_path / "logos" / name).write_bytes(SVG)
    for name in ("notes.txt", "provider-..svg.exe", "provider-big.svg"):
        (tmp_path / "logos" / name).write_bytes(b"x" * 200_000)
    async with running_api(tmp_path) as api:
        api.app.state.templates.logos = Logos(tmp_path / "logos")
        key = await api.app_for("asker", Action.CONNECT)
        made = await api.post("/v1/connections", key, {"integration": "crm", "subject": "user-1"})
        page = await Visitor(api).open(made.json()["connect_url"])
        assert re.findall(r'<img[^>]* src="([^"]+)"', page.text) == [
            "/logos/app-acme-asker.svg",
            "/logos/provider-gitlab.png",
        ]
        logo = await api.get("/logos/app-acme-asker.svg")
        assert (logo.content, logo.headers["content-type"]) == (SVG, "image/svg+xml")
        assert logo.headers["content-security-policy"].endswith("sandbox")
        assert logo.headers["x-content-type-options"] == "nosniff"
        for absent in ("notes.txt", "provider-big.svg", "..%2F..%2Fkeys.json", "app-other-asker.svg"):
            assert (await api.get(f"/logos/{absent}")).status_code == 404, absent


def test_a_monogram_is_the_same_everywhere_and_never_empty():
    party = Logos().party
    names = {"crm-sync": "CS", "GitLab": "G", "login.example.com:8443": "LE", "…": "?"}
    for name, monogram in names.items():
        assert (party(name).monogram, party(name).logo) == (monogram, None)
        assert party(name).tone == party(name).tone < 6


async def test_a_route_says_that_what_it_names_may_not_be_there(api: Api):
    """Also where nothing in its path does: a parameter names it, or a tenant has one or none."""
    admin = await api.app_with("admin", Action.ADMIN)
    paths = api.app.openapi()["paths"]
    for method, path in (
        ("GET", "/v1/delegations?app=absent"),
        ("GET", "/v1/client-login"),
        ("DELETE", "/v1/client-login"),
        ("GET", "/v1/admin-login"),
    ):
        assert (await api.call(method, path, admin)).status_code == 404
        assert "404" in paths[path.partition("?")[0]][method.lower()]["responses"], path
