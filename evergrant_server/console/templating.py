"""The templates of all pages: every value is escaped, and a missing one is an error."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

FOLDER = Path(__file__).parent


def new_environment() -> Environment:
    """Compiles each template once."""
    return Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,  # regardless of the file's extension
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
