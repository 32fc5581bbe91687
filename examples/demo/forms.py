"""Reads the forms of an HTML page with the standard library."""

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass(frozen=True)
class Button:
    name: str
    value: str
    label: str


@dataclass
class HtmlForm:
    """One form of a page, with the values that it would send unchanged."""

    method: str
    action: str
    fields: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    buttons: list[Button] = field(default_factory=list)

    def name_of(self, kind: str) -> str | None:
        """The name of the first field of this input type, such as `password`."""
        return next((name for name, found in self.kinds.items() if found == kind), None)


class _FormReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[HtmlForm] = []
        self.refresh_url: str | None = None
        self._form: HtmlForm | None = None
        self._button: dict[str, str] | None = None
        self._label = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "meta" and attributes.get("http-equiv", "").lower() == "refresh":
            _, _, url = attributes.get("content", "").partition("url=")
            self.refresh_url = url or None
        elif tag == "form":
            self._form = HtmlForm(attributes.get("method", "get").lower(), attributes.get("action", ""))
            self.forms.append(self._form)
        elif self._form is not None and tag == "input":
            self._input(self._form, attributes)
        elif self._form is not None and tag == "button":
            self._button, self._label = attributes, ""

    def handle_data(self, data: str) -> None:
        if self._button is not None:
            self._label += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None
        elif tag == "button" and self._form is not None and self._button is not None:
            if self._button.get("type", "submit") == "submit":
                self._press(self._form, self._button, self._label.strip())
            self._button = None

    def _input(self, form: HtmlForm, attributes: dict[str, str]) -> None:
        kind, name = attributes.get("type", "text").lower(), attributes.get("name", "")
        if kind in ("submit", "image"):
            self._press(form, attributes, attributes.get("value", ""))
        elif name and (kind not in ("checkbox", "radio") or "checked" in attributes):
            form.fields[name] = attributes.get("value", "on" if kind == "checkbox" else "")
            form.kinds[name] = kind

    @staticmethod
    def _press(form: HtmlForm, attributes: dict[str, str], label: str) -> None:
        form.buttons.append(Button(attributes.get("name", ""), attributes.get("value", ""), label))


def read_forms(html: str) -> list[HtmlForm]:
    """Every form of the page, in order."""
    return _read(html).forms


def read_refresh(html: str) -> str | None:
    """The target of the page's `refresh` meta element, or None."""
    return _read(html).refresh_url


def _read(html: str) -> _FormReader:
    reader = _FormReader()
    reader.feed(html)
    reader.close()
    return reader
