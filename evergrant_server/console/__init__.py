"""The pages people see: templates, their one style sheet, and what they say.

Owns wording and looks. Doesn't own who may see a page or what it stands for (api). Pages work
without JavaScript and load nothing from elsewhere; every value in them is escaped.
"""

from evergrant_server.console.pages import STYLE, Pages

__all__ = ["STYLE", "Pages"]
