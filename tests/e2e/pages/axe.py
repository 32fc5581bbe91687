"""What is wrong with a page as it is shown: axe-core reads it as assistive technology does (WCAG 2.1 AA, and
its best practices); beside that, what is wider than the screen or cut off.

A page has to have the script, by `page.add_init_script(path=AXE)`.
"""

import sys
from pathlib import Path

from playwright.async_api import Page

AXE = Path(sys.prefix) / "axe/node_modules/axe-core/axe.min.js"
# rows and routes that look like the ones before them; a page that waits for a worker reloads, and says so
_OPTIONS = "{rules: {'meta-refresh': {enabled: false}}}"
_CONTEXT = "{exclude: ['section.route ~ section.route', 'tbody > tr:nth-child(n+5)']}"
_NODE = "`${violation.id}: ${node.target} ${node.html.slice(0, 90)}`"
_NODES = f"result.violations.flatMap(violation => violation.nodes.map(node => {_NODE}))"
_ALL = f"async () => {{ const result = await axe.run({_CONTEXT}, {_OPTIONS}); return {_NODES} }}"
_CONTRAST = _ALL.replace(_OPTIONS, "{runOnly: ['color-contrast']}")
_TOO_WIDE = "document.documentElement.scrollWidth - innerWidth"
_CUT = """[...document.querySelectorAll('body *:not(.unseen, input, select, thead)')]
  .filter(node => node.scrollWidth > node.clientWidth + 1 && getComputedStyle(node).overflowX === 'hidden')
  .map(node => node.outerHTML.slice(0, 90))"""


async def problems(page: Page) -> list[str]:
    """All that is wrong with the page, in words."""
    return [*await layout_problems(page), *await page.evaluate(_ALL)]


async def contrast_problems(page: Page) -> list[str]:
    """What can't be read in the colours of now: the rest is the same in all colours."""
    return await page.evaluate(_CONTRAST)


async def layout_problems(page: Page) -> list[str]:
    """What is wider than the screen, or cut off."""
    wide = ["it is wider than the screen"] if await page.evaluate(_TOO_WIDE) > 0 else []
    return wide + [f"it cuts {node}" for node in await page.evaluate(_CUT)]
