"""A page says that its act takes a login of moments ago where it does, and nowhere else; the way back."""

import re
from collections.abc import Iterator
from pathlib import Path

from evergrant_server.core.people.roles import Person, PersonRole
from examples.demo.forms import HtmlForm, read_forms
from tests.e2e.pages.filled import fill
from tests.e2e.pages.views import CONSOLE
from tests.fakes.api import Api, running_api
from tests.security.console import ConsoleBrowser, person_at_console
from tests.security.people import ORIGIN

NOTICE = "This takes a login of the last five minutes"
ANN = Person(issuer="https://login.example", sub="ann", name="ann@example.com")
# `Type the app's name, crm-sync, to confirm`; also without what it is, and with the name in bold
_CONFIRM = re.compile(r'<label for="confirm">Type (?:the [^,<]+, )?(?:<strong>)?([^,<]+?)(?:</strong>|,)')


async def test_an_old_login_is_told_so_before_it_types_where_the_act_takes_a_fresh_one(tmp_path: Path):
    """Each form of the console that asks for a name, or for nothing: it is told, or the act is done."""
    async with running_api(tmp_path, public_url=ORIGIN) as api:
        filled = await fill(api)
        browser = await person_at_console(api, PersonRole.TENANT_ADMIN, person=ANN)
        api.clock.advance(360)
        paths = {view.path.format_map(vars(filled)) for view in CONSOLE}
        # what stands within something is ended before that is
        ordered = sorted(paths, key=lambda path: (-path.count("/"), path))
        judged, wrong = 0, list[str]()
        for path in ordered:
            page = await browser.browser.get(path)
            for form in read_forms(page.text) if page.status_code == 200 else ():
                if not await _is_judged(form, page.text):
                    continue
                answer = await browser.browser.post(
                    form.action, data=_typed(form, page.text), headers={"Origin": ORIGIN}
                )
                is_refused, is_told = "step_up_required" in answer.text, NOTICE in page.text
                judged += 1
                changes_nothing = form.action.endswith("/edit")
                if is_told and not is_refused and _forms_like(page.text) == 1 and not changes_nothing:
                    wrong.append(f"{path}: told {is_told}, refused {is_refused}: {form.action}")
                elif is_refused and not is_told:
                    wrong.append(f"{path}: refused, and not told: {form.action}")
        assert judged > 25
        assert wrong == []


async def _is_judged(form: HtmlForm, page: str) -> bool:
    """A form that does something by itself, or once a name is typed; not the one that logs out."""
    if form.method != "post" or form.action == "/console/logout":
        return False
    free = {name for name in _required(page, form)} - {"confirm", "reason"}
    return not free and not form.action.endswith(("/try", "/begin", "/forget"))


def _required(page: str, form: HtmlForm) -> Iterator[str]:
    text = page[page.index(f'action="{form.action}"') :]
    text = text[: text.index("</form>")]
    for field in re.findall(r"<(?:input|textarea|select)[^>]*>", text):
        name = re.search(r'name="([^"]+)"', field)
        if name is not None and " required" in field:
            yield name[1]


def _typed(form: HtmlForm, page: str) -> dict[str, str]:
    asked = _CONFIRM.search(page)
    typed = {} if asked is None or "confirm" not in form.fields else {"confirm": asked[1].strip()}
    return {**form.fields, "reason": "T-1", **typed}


def _forms_like(page: str) -> int:
    return sum(form.method == "post" and form.action != "/console/logout" for form in read_forms(page))


async def test_a_login_leads_back_to_the_whole_address(api: Api):
    """A new integration's form is chosen by its query: without it the form would be another one."""
    browser: ConsoleBrowser = await person_at_console(api, PersonRole.TENANT_ADMIN, person=ANN)
    form = "/console/new/integration?provider=generic&issuer=https%3A%2F%2Flogin.acme.example%2Fstaff"
    await browser.page(form)
    assert browser.browser.cookies["evergrant-page"].strip('"') == form
    await browser.page("/console")
    assert browser.browser.cookies["evergrant-page"].strip('"') == "/console"
    await browser.browser.get("/console/connections?search='x'")
    assert browser.browser.cookies["evergrant-page"].strip('"') == "/console/connections"
