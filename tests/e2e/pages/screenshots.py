"""`make screenshots`: every page and view of the console, at two widths, light and dark.

python -m tests.e2e.pages.screenshots [--out build/screenshots] [NAME…]
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

import pytest

from tests.e2e.pages.product import running_product
from tests.e2e.pages.site import Site, running_site
from tests.e2e.pages.views import CONSOLE, View, views

WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
ELEMENT = "connect-element"


async def take(out: Path, names: list[str]) -> int:
    """Write the pictures of these views, or of all; returns how many."""
    wanted = [it for it in views() if not names or it.name in names]
    taken = len(wanted) * len(WIDTHS) * len(SCHEMES)
    if not names or ELEMENT in names:
        taken += await _take_element(out)
    if not wanted:
        return taken
    with tempfile.TemporaryDirectory() as folder:
        async with running_site(Path(folder)) as site:
            for width in WIDTHS:
                for scheme in SCHEMES:
                    await _take_all(site, wanted, out, width, scheme)
    return taken


async def _take_element(out: Path) -> int:
    """The connect element in every state, plain and in a product's colours, and its question."""
    taken = 0
    with tempfile.TemporaryDirectory() as folder:
        async with running_product(Path(folder) / "web") as product:
            for width in WIDTHS:
                for scheme in SCHEMES:
                    page = await product.page(viewport=_size(width), color_scheme=scheme)
                    for brand in ("", "brand"):
                        await page.goto(f"{product.url}/settings?base=/states&brand={brand}")
                        await page.get_by_text("GitHub no longer accepts").wait_for()
                        name = f"{ELEMENT}{'-' + brand if brand else ''}-{width}-{scheme}.png"
                        await page.screenshot(path=out / name, full_page=True)
                    await page.get_by_role("button", name="Disconnect: GitHub, ann-of-acme").click()
                    await page.screenshot(path=out / f"{ELEMENT}-question-{width}-{scheme}.png")
                    await page.context.close()
                    taken += 3
    return taken


def _size(width: int) -> dict[str, int]:
    return {"width": width, "height": 844 if width < 600 else 800}


async def _take_all(site: Site, wanted: list[View], out: Path, width: int, scheme: str) -> None:
    page = await site.page(viewport=_size(width), color_scheme=scheme)
    logged_in = False
    for view in wanted:
        if view in CONSOLE and not logged_in:
            await site.log_in(page)
            logged_in = True
        await site.show(page, view)
        await page.screenshot(path=out / f"{view.name}-{width}-{scheme}.png", full_page=True)
    await page.context.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("build/screenshots"))
    parser.add_argument("names", nargs="*", help="views; without one: all")
    given = parser.parse_args()
    if unknown := set(given.names) - {ELEMENT, *(it.name for it in views())}:
        parser.error(f"no such view: {', '.join(sorted(unknown))}")
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        taken = asyncio.run(take(given.out, given.names))
    except pytest.skip.Exception as missing:  # a browser
        raise SystemExit(str(missing)) from None
    print(f"wrote {taken} pictures to {given.out}/")


if __name__ == "__main__":
    main()
