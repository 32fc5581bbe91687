"""Integrations in the console: made from a URL or the catalogue, changed without losing anything, tried, and
given a new secret with two live."""

import re
from datetime import timedelta

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.account import OnReconnect
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import AfterGrantOver, Integration, IntegrationState
from evergrant_server.core.messages.integrations import DiscoveryResult
from evergrant_server.core.messages.jobs import DISCOVER_ENDPOINTS
from evergrant_server.core.people.roles import PersonRole
from tests.fakes.api import TENANT, Api
from tests.security.console import ConsoleBrowser, at_console, person_at_console
from tests.security.people import ORIGIN

NEW, CRM = "/console/new/integration", "/console/integrations/crm"
FILLED = {
    "name": "crm",
    "provider": "github",
    "client_id": "Iv1.9d0b7a21c55e",
    "client_secret": "hush-hush-secret",
    "binding": "app",
    "default_scopes": "read:user",
}
ACTS = (NEW, *(f"{CRM}/{act}" for act in ("edit", "rotate-secret", "delete")))
ISSUER = "https://login.example.com/realms/staff"


async def an_admin(api: Api, *actions: Action) -> ConsoleBrowser:
    return await at_console(api, await api.app_with("boss", *(actions or (Action.ADMIN,))))


async def made(api: Api, *actions: Action) -> ConsoleBrowser:
    browser = await an_admin(api, *actions)
    answer = await browser.send(NEW, **FILLED)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{CRM}?done=made"), answer.text
    return browser


async def stored(api: Api, name: str = "crm") -> Integration:
    async with api.worker.read() as tx:
        integration = await tx.integrations.by_name(TENANT, name)
    assert integration is not None
    return integration


async def secrets_of(api: Api) -> list[str]:
    integration = await stored(api)
    async with api.worker.read() as tx:
        keys = (
            await tx.integrations.client_secret(integration),
            await tx.integrations.previous_secret(integration),
        )
    return [key.reveal() for key in keys if key is not None]


def problem_at(page: str, field: str) -> str:
    shown_problem = re.search(rf'<p class="problem" id="{re.escape(field)}-problem">([^<]+)</p>', page)
    assert shown_problem is not None, page
    return shown_problem[1]


async def test_one_is_made_from_the_catalogue_and_its_secret_is_sent_back_by_no_page(api: Api):
    browser = await an_admin(api)
    assert f'href="{NEW}?provider=github"' in await browser.page("/console/providers/github")
    form = await browser.page(f"{NEW}?provider=github")
    for shown in ("Make an integration: GitHub", 'value="read:user" checked', 'value="github"'):
        assert shown in form
    assert (await browser.send(NEW, **FILLED)).status_code == 303
    integration = await stored(api)
    assert (integration.provider, integration.default_scopes) == ("github", ("read:user",))
    assert await secrets_of(api) == ["hush-hush-secret"]
    page = await browser.page(f"{CRM}?done=made")
    assert f"https://evergrant.test/oauth/callback/{integration.id}" in page
    assert "a secret is stored" in page
    for path in (CRM, f"{CRM}/edit", f"{CRM}/rotate-secret", "/console/integrations"):
        assert "hush-hush" not in await browser.page(path)
    (record,) = await api.records(AuditAction.INTEGRATION_PUT)
    assert record.context.by == "app:boss"
    again = await browser.send(NEW, **FILLED)
    assert (again.status_code, problem_at(again.text, "name")) == (
        409,
        "There is an integration of this name.",
    )


async def test_without_a_client_it_first_gets_its_redirect_uri(api: Api):
    browser = await an_admin(api)
    await browser.send(NEW, name="crm", provider="github", binding="app")
    page = await browser.page(CRM)
    assert "Register a client at the provider" in page
    integration = await stored(api)
    assert (integration.client_id, integration.state) == ("", IntegrationState.FAILED)
    answer = await browser.send(f"{CRM}/edit", client_id="abc", client_secret="hush", binding="app")
    assert answer.status_code == 303
    assert (await stored(api)).state is IntegrationState.READY
    assert "Register a client" not in await browser.page(CRM)


async def test_from_an_issuers_url_whose_metadata_cant_be_used_the_page_says_why(api: Api):
    browser = await an_admin(api)
    start = await browser.page(NEW)
    assert 'name="issuer"' in start
    form = await browser.page(f"{NEW}?provider=generic&issuer={ISSUER}")
    assert f'value="{ISSUER}"' in form
    assert 'name="name" value="example"' in form
    why = f"{ISSUER}/.well-known/openid-configuration answered 404"

    async def discover(order: object) -> DiscoveryResult:
        integration = await stored(api, "staff")
        async with api.worker.write() as tx:
            failed = integration.__replace__(state=IntegrationState.FAILED, problem=why)
            await tx.integrations.put(failed, None, expected=integration.revision)
        return DiscoveryResult(failure=ErrorCode.DISCOVERY_FAILED, detail=why)

    api.link.on_job[DISCOVER_ENDPOINTS.name] = discover
    sent = {"name": "staff", "provider": "generic", "issuer": ISSUER, "client_id": "x", "client_secret": "y"}
    answer = await browser.send(NEW, **sent)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/integrations/staff?done=made")
    assert "answered 404" in await browser.page("/console/integrations/staff")


@pytest.mark.parametrize(
    ("field", "typed", "problem"),
    [
        ("name", "Not A Name", "lower-case"),
        ("client_secret", "", "client secret is needed"),
        ("binding", "flying", "use "),
        ("login.integration", "absent", "belongs to the binding"),
        ("scope_ceiling", "repo", "default scope is above"),
        ("identity_provider", "absent", "takes no grants"),
        ("refresh.grace_s", "soon", "Use a number"),
        ("client_key.private", "no key", ""),
    ],
)
async def test_a_refused_form_comes_back_filled_but_for_secrets(
    api: Api, field: str, typed: str, problem: str
):
    browser = await an_admin(api)
    answer = await browser.send(NEW, **{**FILLED, field: typed})
    assert answer.status_code == 400
    place = "default_scopes" if field == "scope_ceiling" else field
    assert problem in problem_at(answer.text, place)
    assert 'value="Iv1.9d0b7a21c55e"' in answer.text
    for secret in ("hush-hush", "no key</textarea>"):
        assert secret not in answer.text
    async with api.worker.read() as tx:
        assert await tx.integrations.page(TENANT, None, 5) == []


async def test_a_parameter_of_the_provider_has_its_field_and_its_problem(api: Api):
    browser = await an_admin(api)
    assert 'name="params.subdomain"' in await browser.page(f"{NEW}?provider=zendesk")
    sent = {**FILLED, "provider": "zendesk", "params.subdomain": "not a subdomain"}
    answer = await browser.send(NEW, **sent)
    assert answer.status_code == 400
    assert "subdomain" in problem_at(answer.text, "params.subdomain")
    assert (await browser.browser.get(f"{NEW}?provider=no-such")).status_code == 404


async def test_a_change_loses_nothing_that_it_doesnt_name(api: Api):
    browser = await made(api)
    before = await stored(api)
    async with api.worker.write() as tx:
        rich = before.__replace__(
            scope_ceiling=("read:user", "repo"),
            refresh_overrides={"rotation": "strict", "refresh_token_idle_s": 86_400.0 * 30},
            dpop=False,
            on_reconnect=OnReconnect.ANY,
            after_grant_over=AfterGrantOver.REFUSE,
        )
        await tx.integrations.put(rich, None, expected=before.revision)
    form = await browser.page(f"{CRM}/edit")
    fields = dict(re.findall(r'<input id="([^"]+)" name="[^"]+"[^>]* value="([^"]*)"', form))
    for select, options in re.findall(r'<select id="([^"]+)".*?>(.*?)</select>', form, re.DOTALL):
        picked = re.search(r'value="([^"]*)" selected', options)
        fields[select] = "" if picked is None else picked[1]
    fields["default_scopes"] = " ".join(re.findall(r'name="default_scopes" value="([^"]+)" checked', form))
    fields.pop("further")
    answer = await browser.send(f"{CRM}/edit", **fields)
    assert answer.status_code == 303, answer.text
    after = await stored(api)
    untold = {"revision", "changed_at", "refresh"}
    assert after.model_dump(exclude=untold) == rich.model_dump(exclude=untold)
    assert await secrets_of(api) == ["hush-hush-secret"]


async def test_a_new_secret_is_used_first_with_two_live_and_there_is_a_way_back(api: Api):
    browser = await made(api)
    refused = await browser.send(f"{CRM}/rotate-secret", client_secret="", overlap_s="2")
    assert (refused.status_code, bool(problem_at(refused.text, "client_secret"))) == (400, True)
    answer = await browser.send(f"{CRM}/rotate-secret", client_secret="second-secret", overlap_s="2")
    assert answer.headers["location"] == f"{CRM}?done=rotated"
    assert await secrets_of(api) == ["second-secret", "hush-hush-secret"]
    assert (await stored(api)).previous_secret_until == api.clock.now() + timedelta(hours=2)
    for path in (CRM, f"{CRM}/rotate-secret"):
        page = await browser.page(path)
        assert re.search(r"[Tt]wo are live.*ends", page, re.DOTALL)
        assert "second-secret" not in page
    answer = await browser.send(f"{CRM}/rotate-secret", roll_back="yes")
    assert answer.headers["location"] == f"{CRM}?done=rolled-back"
    assert await secrets_of(api) == ["hush-hush-secret"]


async def test_it_is_tried_at_once_by_who_may_connect(api: Api):
    browser = await made(api, Action.ADMIN, Action.CONNECT)
    assert 'name="subject" value="boss"' in await browser.page(f"{CRM}/try")
    answer = await browser.send(f"{CRM}/try", subject="boss")
    assert (answer.status_code, "Open this link yourself" in answer.text) == (200, True)
    assert len(re.findall(r'value="https://evergrant\.test/connect/[\w-]{43}"', answer.text)) == 1
    (record,) = await api.records(AuditAction.CONNECTION_CREATED)
    assert record.context.by == "app:boss"
    refused = await browser.send(f"{CRM}/try", subject="")
    assert (refused.status_code, bool(problem_at(refused.text, "subject"))) == (400, True)
    window = await at_console(api, await api.app_with("sync", Action.CONNECT))
    assert 'name="subject" value="sync"' in await window.page(f"{CRM}/try"), "as the page of a person says"
    assert (await window.browser.get("/console/integrations/absent/try")).status_code == 404
    person = await person_at_console(api, PersonRole.TENANT_ADMIN)
    assert "belongs to the app that asks for it" in await person.page(f"{CRM}/try")
    assert (await person.send(f"{CRM}/try", subject="ann")).status_code == 403


async def test_it_is_deleted_by_its_name_once_no_connection_is_live(api: Api):
    browser = await made(api)
    await api.connection(await stored(api))
    page = await browser.page(f"{CRM}/delete")
    assert re.search(r"<li>1 of its connections waits for consent", page)
    wrong = await browser.send(f"{CRM}/delete", confirm="erp")
    assert (wrong.status_code, bool(problem_at(wrong.text, "confirm"))) == (400, True)
    refused = await browser.send(f"{CRM}/delete", confirm="crm")
    assert (refused.status_code >= 400, 'role="alert"' in refused.text) == (True, True)
    await stored(api)
    await browser.send(NEW, **{**FILLED, "name": "erp"})
    answer = await browser.send("/console/integrations/erp/delete", confirm="erp")
    assert answer.headers["location"] == "/console/integrations?done=deleted"


@pytest.mark.parametrize("path", ACTS)
async def test_an_auditor_and_another_sites_form_change_nothing(api: Api, path: str):
    browser = await made(api)
    before = await stored(api)
    filled = {**FILLED, "name": "other", "confirm": "crm", "client_secret": "second-secret"}
    auditor = await person_at_console(api, PersonRole.AUDITOR)
    assert f"{CRM}/edit" not in await auditor.page(CRM)
    assert (await auditor.browser.get(path)).status_code == 403
    assert (await auditor.send(path, **filled)).status_code == 403
    stranger = await browser.browser.post(path, data={**filled, "csrf": "0" * 64}, headers={"Origin": ORIGIN})
    assert stranger.status_code == 400
    assert await stored(api) == before
    assert await secrets_of(api) == ["hush-hush-secret"]
    async with api.worker.read() as tx:
        assert await tx.integrations.by_name(TENANT, "other") is None


async def test_an_admin_of_one_integration_changes_that_one_alone(api: Api):
    await made(api)
    await api.integration("other")
    browser = await at_console(api, await api.app_with("narrow", Action.ADMIN, integration="crm"))
    assert (await browser.send(f"{CRM}/edit", **FILLED)).status_code == 303
    for path in ("/console/integrations/other/edit", NEW):
        assert (await browser.browser.get(path)).status_code == 403


async def test_an_old_login_is_led_to_a_new_one_before_anything_is_typed(api: Api):
    await made(api)
    person = await person_at_console(api, PersonRole.TENANT_ADMIN)
    api.clock.advance(360)
    assert "login of the last five minutes" in await person.page(f"{CRM}/edit")
    answer = await person.send(f"{CRM}/edit", **{**FILLED, "client_id": "another"})
    assert (answer.status_code, "step_up_required" in answer.text) == (403, True)
    assert 'value="another"' in answer.text
    assert (await stored(api)).binding is Binding.APP
