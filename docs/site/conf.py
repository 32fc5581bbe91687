"""How `make site` builds the pages: Sphinx with MyST reads the Markdown where it lies.

The contents of the sidebar stand here, because the pages are read without this site as well.
"""

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]

project = "Evergrant"
release = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/**.md",
    "examples/pipeline/README.md",
    "clients/typescript/README.md",
    "clients/web/README.md",
]
exclude_patterns = [".*", "build"]  # else each file of the virtual environment is looked at
extensions = ["myst_parser", "sphinx_copybutton", "sphinx_llms_txt"]
myst_heading_anchors = 4
highlight_language = "none"

html_theme = "furo"
html_title = f"Evergrant {release}"
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5f3f", "color-brand-content": "#1f5f3f"},
    "dark_css_variables": {"color-brand-primary": "#7fcf9f", "color-brand-content": "#7fcf9f"},
}
llms_txt_summary = (
    "Evergrant is self-hosted managed OAuth on Temporal: name a connection, get a working access token "
    "or a typed answer that says what a person has to do."
)
llms_txt_full_file = False
llms_txt_exclude = ["docs/adr/*", "CHANGELOG", "CONTRIBUTING", "docs/dependencies", "docs/releasing"]

CONTENTS: dict[str, dict[str, list[str]]] = {
    "README": {
        "First steps": ["docs/guide/getting-started", "docs/guide/concepts", "docs/comparison",
                        "docs/guide/binding",
                        "docs/guide/python", "clients/typescript/README", "examples/pipeline/README",
                        "docs/guide/settings-page", "clients/web/README",
                        "docs/guide/moving-in"],
        "Apps and people": ["docs/apps", "docs/guide/permits", "docs/guide/proxy", "docs/guide/envoy",
                            "docs/guide/asking-for-access",
                            "docs/guide/agents", "docs/guide/delegation", "docs/guide/people",
                            "docs/guide/leavers",
                            "docs/guide/accounts", "docs/guide/webhooks"],
        "Providers": ["docs/providers/README", "docs/guide/discovery", "docs/guide/mcp",
                      "docs/guide/api-limits", "docs/guide/mcp-gateway", "docs/guide/mcp-server",
                      "docs/guide/enterprise",
                      "docs/guide/frameworks",
                      "docs/guide/own-providers",
                      "docs/guide/adding-a-provider", "docs/flows"],
        "In production": ["docs/guide/operations", "docs/apply", "docs/deliver", "docs/console",
                          "docs/guide/kubernetes", "docs/guide/upgrades", "docs/guide/regions",
                          "docs/guide/cells", "docs/guide/external-revocation", "docs/telemetry",
                          "docs/runbook", "docs/benchmarks", "docs/capacity", "docs/scale",
                          "docs/reliability", "docs/protocol"],
        "Security": ["docs/guide/security", "docs/security/threat-model", "docs/security/keys",
                     "docs/guide/audit", "docs/guide/audit-streams", "docs/guide/questions",
                     "docs/guide/incidents", "docs/guide/campaigns",
                     "docs/security/key-services", "docs/security/erasure", "docs/security/clauses",
                     "docs/security/roles",
                     "docs/security/dangerous", "SECURITY"],
        "Reference": ["docs/reference/http", "docs/errors", "docs/reference/settings",
                      "docs/reference/events", "docs/reference/audit", "docs/reference/storage",
                      "docs/reference/key-services"],
        "The project": ["docs/architecture", "docs/adr/README", "docs/dependencies", "docs/releasing",
                        "CONTRIBUTING", "CHANGELOG"],
    },
    "docs/providers/README": {"By letter": ["?"]},
    "docs/adr/README": {"Decisions": ["[0-9]*"]},
}  # fmt: skip


def _add_contents(_: Sphinx, page: str, source: list[str]) -> None:
    for caption, pages in CONTENTS.get(page, {}).items():
        place = "" if "?" in pages or "[0-9]*" in pages else "/"
        listed = "\n".join(f"{place}{it}" for it in pages)
        glob = "" if place else ":glob:\n"
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n{glob}\n{listed}\n```\n"


def _add_start_page(app: Sphinx, failed: Exception | None) -> None:
    if failed is None and app.builder.name == "html":
        shutil.copyfile(app.outdir / "README.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    app.connect("source-read", _add_contents)
    app.connect("build-finished", _add_start_page)
