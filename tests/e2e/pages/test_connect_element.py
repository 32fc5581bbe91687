"""The connect element on a product's page with a strict policy: by keyboard, read by axe, in both colours."""

from collections.abc import AsyncIterator

import httpx2
import pytest
import pytest_asyncio
from evergrant import State
from playwright.async_api import Page

from tests.e2e.pages.product import Product, running_product
from tests.e2e.pages.test_views import AXE, PHONE

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one build and one browser for all: it takes seconds

DESKTOP = {"width": 1280, "height": 800}
MOST_BYTES = 10_000
_VIOLATIONS = """async () => (await axe.run()).violations.flatMap(
    it => it.nodes.map(node => `${it.id}: ${node.target} ${node.html.slice(0, 90)}`))"""
_TOO_WIDE = "document.documentElement.scrollWidth - innerWidth"
_FOCUSED = "document.querySelector('evergrant-connect').shadowRoot.activeElement?.getAttribute('aria-label')"
SMOKE = """
import { EvergrantConnect, type Connections } from './evergrant-connect.js'

const element = document.querySelector('evergrant-connect')!
const own: EvergrantConnect = element
own.words = { connect: 'Verbinden' }
// @ts-expect-error: there is no such text
own.words = { konnect: 'Verbinden' }
own.addEventListener('evergrant-pick', (event) => event.detail.label.trim())
own.addEventListener('evergrant-change', (event) => {
  const shown: Connections = event.detail
  // @ts-expect-error: a backend has no such member
  shown.tokens
})
await own.refresh()
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def product(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Product]:
    async with running_product(tmp_path_factory.mktemp("product") / "web", SMOKE) as running:
        yield running


async def _press(page: Page, name: str) -> None:
    """Press Enter on the button of this name."""
    await page.get_by_role("button", name=name, exact=True).focus()
    await page.keyboard.press("Enter")


async def _consent(product: Product, page: Page) -> None:
    """The browser is at the connect link: its person consents, and comes back."""
    await page.wait_for_url(f"{product.fake.url}/connect/**")
    back = httpx2.post(page.url).headers["location"]
    await page.goto(back)
    await page.get_by_text("It is connected.").wait_for()
    assert page.url == f"{product.url}/settings", "the outcome isn't shown again by a reload"


async def test_the_file_is_small_and_needs_nothing_else(product: Product):
    assert len(product.script) < MOST_BYTES
    assert b"import " not in product.script
    assert b"innerHTML" not in product.script


async def test_a_person_connects_picks_reconnects_and_disconnects_by_keyboard(product: Product):
    fake, page = product.fake, await product.page(viewport=PHONE)
    await page.goto(f"{product.url}/login")
    await _press(page, "Connect: The CRM")
    await _consent(product, page)
    await _press(page, "Connect another account: The CRM")
    await _consent(product, page)
    first, second = fake.connections.values()
    assert (first.label, second.label, second.subject) == ("default", "account-2", "alice")

    first.account, second.account = "alice@example.org", "alice@example.com"
    await page.reload()
    picks = "document.querySelector('evergrant-connect').addEventListener('evergrant-pick', "
    await page.evaluate(f"{picks} event => {{ window.picked = event.detail.label }})")
    assert await page.get_by_role("radio", name="Use The CRM, alice@example.org").is_checked()
    await page.get_by_role("radio", name="Use The CRM, alice@example.org").focus()
    await page.keyboard.press("ArrowDown")
    assert await page.evaluate("window.picked") == "account-2"
    assert await page.evaluate("document.querySelector('evergrant-connect').value.crm") == "account-2"

    first.lose()
    await page.reload()
    await page.get_by_text("The CRM no longer accepts the access that you gave. It is your turn.").wait_for()
    await _press(page, "Reconnect: The CRM, alice@example.org")
    await _consent(product, page)
    assert first.state is State.ACTIVE

    end = "Disconnect: The CRM, alice@example.com"
    await _press(page, end)
    await page.get_by_role("dialog", name="Disconnect The CRM, alice@example.com?").wait_for()
    await page.keyboard.press("Enter")  # on the button that keeps it
    assert (second.state, await page.evaluate(_FOCUSED)) == (State.ACTIVE, end)
    await page.keyboard.press("Enter")
    await page.keyboard.press("Shift+Tab")
    await page.keyboard.press("Enter")
    await page.get_by_role("status").get_by_text("The CRM, alice@example.com is disconnected.").wait_for()
    assert (first.state, second.state) == (State.ACTIVE, State.REVOKED)
    assert str(await page.evaluate(_FOCUSED)).startswith("Disconnect: The CRM"), "the focus stays near"
    assert product.problems == [], "no policy was broken"
    await page.context.close()


async def test_a_failure_says_whose_turn_it_is_and_a_lost_login_where_to_go(product: Product):
    page = await product.page(viewport=PHONE)
    await page.goto(f"{product.url}/login")
    await page.get_by_role("button", name="Connect: The Code").wait_for()
    product.fake.fail("client_rejected", kind="ClientMisconfigured", status=424)
    await _press(page, "Connect: The Code")
    said = "The way to The Code isn't set up here as it should be. It is an administrator's turn."
    await page.get_by_role("status").get_by_text(said).wait_for()
    await _press(page, "Try again")
    await page.get_by_text(said).wait_for(state="detached")
    await page.goto(f"{product.url}/settings?evergrant=subject_mismatch")
    await page.get_by_text("Another person came back than the one who is logged in here.").wait_for()
    await page.request.get(f"{product.url}/logout")
    await page.reload()
    await page.get_by_text("Your login is over.").wait_for()
    await page.get_by_role("link", name="Log in").click()
    await page.get_by_role("button", name="Connect: The Code").wait_for()
    assert product.problems == []
    await page.context.close()


@pytest.mark.parametrize("size", [PHONE, pytest.param(DESKTOP, marks=pytest.mark.soak)], ids=["390", "1280"])
@pytest.mark.parametrize("brand", [pytest.param("", marks=pytest.mark.soak), "brand"])
async def test_wcag_every_state_light_and_dark(product: Product, size: dict[str, int], brand: str):
    found: list[str] = []
    for scheme in ("light", "dark"):
        page = await product.page(viewport=size, color_scheme=scheme)
        await page.add_init_script(path=AXE)
        await page.goto(f"{product.url}/settings?base=/states&brand={brand}")
        await page.get_by_text("GitHub no longer accepts").wait_for()
        found += await page.evaluate(_VIOLATIONS)
        await _press(page, "Connect: Google Calendar")
        await page.get_by_text("It is our turn.").wait_for()
        await _press(page, "Disconnect: HubSpot, ann@acme.example")
        await page.get_by_role("dialog").wait_for()
        found += await page.evaluate(_VIOLATIONS)
        if await page.evaluate(_TOO_WIDE) > 0:
            found.append(f"{scheme} is wider than the screen")
        await page.context.close()
    assert found == []
