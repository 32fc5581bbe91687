"""`make screenshots`: every page and view of the console, at two widths, light and dark.

python -m tests.e2e.pages.screenshots [--out build/screenshots] [NAME…]
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

import pytest

from tests.e2e.pages.site import Site, running_site
from tests.e2e.pages.views import CONSOLE, View, views

WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")


async def take(out: Path, names: list[str]) -> int:
    """Write the pictures of these views, or of all; returns how many."""
    wanted = [it for it in views() if not names or it.name in names]
    with tempfile.TemporaryDirectory() as folder:
        async with running_site(Path(folder)) as site:
            for width in WIDTHS:
                for scheme in SCHEMES:
                    await _take_all(site, wanted, out, width, scheme)
    return len(wanted) * len(WIDTHS) * len(SCHEMES)


async def _take_all(site: Site, wanted: list[View], out: Path, width: int, scheme: str) -> None:
    size = {"width": width, "height": 844 if width < 600 else 800}
    page = await site.page(viewport=size, color_scheme=scheme)
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
    if unknown := set(given.names) - {it.name for it in views()}:
        parser.error(f"no such view: {', '.join(sorted(unknown))}")
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        taken = asyncio.run(take(given.out, given.names))
    except pytest.skip.Exception as missing:  # a browser
        raise SystemExit(str(missing)) from None
    print(f"wrote {taken} pictures to {given.out}/")


if __name__ == "__main__":
    main()
