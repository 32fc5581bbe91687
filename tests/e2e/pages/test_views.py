"""Pages and views on a phone: nothing scrolls sideways, all has a name, a role and enough contrast.

`make soak` looks at each of them, every run at one of each kind.
"""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Page

from tests.e2e.pages.axe import AXE, contrast_problems, problems
from tests.e2e.pages.site import Site, running_site
from tests.e2e.pages.views import CONSOLE, views

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one tenant and one browser for all: it takes seconds

PHONE = {"width": 390, "height": 844}
# a list, a detail, a form that is refused, a preview, a value shown once, a plan, a page of a consent
OF_EACH_KIND = {
    *(
        "console-login-refused",
        "page-authorize-long",
        "page-choose",
        "page-connected-long",
        "page-me-approval",
    ),
    *("console-overview", "console-connections", "console-story", "console-app-new-refused"),
    *("console-permit-preview", "console-key-made", "console-campaign-plan", "console-audit-record"),
    *("console-answer-subject", "console-access-refused"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with running_site(tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.mark.parametrize("chosen", ["one of each kind", pytest.param("every view", marks=pytest.mark.soak)])
async def test_wcag_views_at_390_px_light_and_dark(site: Site, chosen: str):
    page, found, logged_in = await site.page(viewport=PHONE), [], False
    await page.add_init_script(path=AXE)
    assert {view.name for view in views()} >= OF_EACH_KIND
    for view in views():
        if chosen != "every view" and view.name not in OF_EACH_KIND:
            continue
        if view in CONSOLE and not logged_in:
            await site.log_in(page)
            logged_in = True
        await page.emulate_media(color_scheme="light")
        await site.show(page, view)
        found += [f"{view.name}: {problem}" for problem in await problems(page)]
        await page.emulate_media(color_scheme="dark")
        found += [f"{view.name}, dark: {problem}" for problem in await contrast_problems(page)]
    assert not found, "\n".join(found)
    assert site.problems == [], "no script was refused, and none failed"


async def _tab_to(page: Page, name: str) -> None:
    """Press Tab until the control of this name has the focus, and shows it."""
    for _ in range(60):
        await page.keyboard.press("Tab")
        told = await page.evaluate(
            "(it => [it.getAttribute('aria-label') || it.labels?.[0]?.innerText || it.innerText,"
            " getComputedStyle(it).outlineStyle])(document.activeElement)"
        )
        assert told[1] == "solid", f"the focus isn't seen at {told[0]}"
        if told[0].strip().startswith(name):
            return
    raise AssertionError(f"Tab never comes to {name}")


async def test_a_key_is_made_and_a_request_decided_by_keyboard_alone(site: Site):
    page = await site.page(viewport=PHONE)
    await site.log_in(page)
    await page.goto(f"{site.url}/console/apps/report")
    await page.keyboard.press("Tab")
    await page.get_by_role("link", name="Skip to the content").wait_for()
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == "page"
    await _tab_to(page, "Make a key")
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", name="Make an API key for report?").wait_for()
    await _tab_to(page, "Make the key")
    await page.keyboard.press("Enter")
    key = await page.get_by_label("API key, shown once").input_value()
    assert key.startswith("evg_key_")
    kept = "JSON.stringify([location.href, {...localStorage}, {...sessionStorage}, document.cookie])"
    assert key not in await page.evaluate(kept)
    assert (await page.get_by_role("status").inner_text()).startswith("The key is made.")

    await _tab_to(page, "Requests")
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", name="Access requests").wait_for()
    await _tab_to(page, "report")
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", name="report asks for access").wait_for()
    await _tab_to(page, "Hours")
    await page.keyboard.type("4")
    await _tab_to(page, "Approve")
    await page.keyboard.press("Enter")
    await page.get_by_text("It is approved, and holds from now on.").first.wait_for()


async def test_the_focus_stays_where_a_part_was_replaced(site: Site):
    page = await site.page(viewport=PHONE)
    await site.log_in(page)
    await page.goto(f"{site.url}/console/providers")
    await page.get_by_role("link", name="Next page").focus()
    await page.keyboard.press("Enter")
    await page.get_by_role("link", name="First page").wait_for()
    assert await page.evaluate("document.activeElement.id") == "results"


async def test_an_integration_is_made_without_scripts(site: Site):
    page = await site.page(viewport=PHONE, java_script_enabled=False)
    await site.log_in(page)
    await page.goto(f"{site.url}/console/integrations")
    await page.get_by_role("link", name="Make an integration").click()
    await page.get_by_label("Name or kind").fill("zendesk")
    await page.get_by_role("button", name="Find the provider").click()
    await page.get_by_role("link", name="Zendesk", exact=True).click()
    await page.get_by_role("link", name="Make an integration").click()
    await page.get_by_label("Name", exact=True).fill("helpdesk")
    await page.get_by_label("Subdomain").fill("not a subdomain")
    await page.get_by_label("Client id").fill("evergrant")
    await page.get_by_label("Client secret").fill("hush-hush")
    await page.get_by_role("button", name="Make the integration").click()
    refused = page.get_by_label("Subdomain")
    assert await refused.get_attribute("aria-invalid") == "true"
    assert await page.get_by_label("Client secret").input_value() == "", "no secret is sent back"
    assert await page.get_by_label("Client id").input_value() == "evergrant"
    await refused.fill("acme")
    await page.get_by_label("Client secret").fill("hush-hush")
    await page.get_by_role("button", name="Make the integration").click()
    await page.get_by_role("heading", name="helpdesk").wait_for()
    uri = await page.get_by_label("Redirect URI, to register at the provider").input_value()
    assert uri.startswith(f"{site.url}/oauth/callback/int_")
