"""Where a request may name another method than its own to the server. Pure.

Frameworks and APIs take the method from a header, a parameter of the query or a field of a form. Case and
signs mean nothing in a name: `_HttpMethod`, `$httpMethod` and `http-method` are one.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import unquote, unquote_plus

RawHeaders = Sequence[tuple[bytes, bytes]]

# whatever their value is
_ALWAYS = frozenset(
    {
        *("httpmethod", "xhttpmethod", "httpmethodoverride", "xhttpmethodoverride"),
        *("methodoverride", "xmethodoverride", "overridemethod", "httpverb", "xhttpverb"),
    }
)
# `_method`, and `method`, which some APIs have for something else: with a method as their value
_WITH_METHOD = frozenset({"method", "xmethod", "requestmethod", "verb"})
_METHODS = frozenset(
    {
        *("get", "head", "post", "put", "patch", "delete", "options", "trace", "connect", "merge"),
        *("copy", "move", "link", "unlink", "lock", "unlock", "mkcol", "purge", "propfind", "proppatch"),
    }
)
_SIGNS = re.compile(r"[^a-z0-9]")
_PAIRS = re.compile(rb"[&;]")
_URLENCODED, _MULTIPART = b"application/x-www-form-urlencoded", b"multipart/"
_FOLDED = re.compile(rb"\r?\n[ \t]+")
_PART_NAME = re.compile(rb"(?<![\w-])name\*?\s*=\s*(?:\"([^\"]*)\"|([^;\s]*))", re.IGNORECASE)
_PART_HEADER = b"content-disposition"
_UNREAD = "a form that isn't read (as a body without a Content-Type may be)"
_MOST_VALUE = 100  # bytes of a field
_MOST_SHOWN, _MOST_NAMES = 40, 50  # characters of a name, names of a query


def method_overrides(
    query: bytes, headers: RawHeaders = (), body: bytes | None = b"", own_names: Iterable[str] = ()
) -> tuple[str, ...]:
    """The places that may name another method, as a person reads them. `body` None: it isn't known whole.
    `own_names` are those that the provider's definition adds, whatever their value is."""
    names = _ALWAYS | {_plain(name) for name in own_names}
    places = [
        f"the query's {_shown(name)}" for name, value in _pairs(query) if _overrides(names, name, value)
    ]
    for raw, value in headers:
        name = raw.decode("latin-1")
        is_own = name.startswith(":")  # of HTTP/2, as Envoy hands it on: the method itself
        if not is_own and _overrides(names, name, value.decode("latin-1")):
            places.append(f"the header {_shown(name)}")
    fields = _form_fields(headers, body)
    if fields is None:
        return (*places, _UNREAD)
    places += [f"the form's {_shown(name)}" for name, value in fields if _overrides(names, name, value)]
    return tuple(dict.fromkeys(places))


def query_names(query: bytes) -> tuple[str, ...]:
    """The names of the query's parameters for the audit log: sorted, shortened, _MOST_NAMES of them."""
    names = sorted({_shown(name) for name, _ in _pairs(query)})
    return tuple(names if len(names) <= _MOST_NAMES else [*names[:_MOST_NAMES], "…"])


def _overrides(names: Iterable[str], name: str, value: str) -> bool:
    plain = _plain(name)
    return plain in names or (plain in _WITH_METHOD and _plain(value) in _METHODS)


def _plain(text: str) -> str:
    return _SIGNS.sub("", text.casefold())


def _shown(name: str) -> str:
    shown = "".join(char if char.isprintable() else "?" for char in name[:_MOST_SHOWN])
    return shown if len(name) <= _MOST_SHOWN else f"{shown}…"


def _pairs(query: bytes) -> Iterator[tuple[str, str]]:
    for pair in filter(None, _PAIRS.split(query)):
        name, _, value = pair.decode("latin-1").partition("=")
        yield unquote_plus(name), unquote_plus(value)


def _form_fields(headers: RawHeaders, body: bytes | None) -> list[tuple[str, str]] | None:
    """The names and values of a form; none of another body; None of a form that can't be read.

    Some servers take a body without a content type for a form.
    """
    kinds = [kind.strip().lower() for kind in _values(b"content-type", headers)] or [_URLENCODED]
    if body == b"" or not any(kind.startswith((_URLENCODED, _MULTIPART)) for kind in kinds):
        return []
    strange = any(b"charset" in kind and b"utf-8" not in kind for kind in kinds)
    if body is None or strange or _values(b"content-encoding", headers):
        return None
    if any(kind.startswith(_MULTIPART) for kind in kinds):
        return [*_pairs(body), *_parts(body)] if len(kinds) > 1 else [*_parts(body)]
    return [*_pairs(body)]


def _parts(body: bytes) -> Iterator[tuple[str, str]]:
    """The fields of a multipart form (RFC 7578 section 4.2), wherever a part could begin."""
    lines = _FOLDED.sub(b" ", body).splitlines()
    for place, line in enumerate(lines):
        if not line.strip().lower().startswith(_PART_HEADER):
            continue
        end = next(
            (number for number in range(place, min(place + 50, len(lines))) if not lines[number].strip()),
            place,
        )
        value = lines[end + 1] if end + 1 < len(lines) else b""
        for quoted, plain in _PART_NAME.findall(line):
            name = unquote((quoted or plain).decode("utf-8", "replace"))
            yield name.rpartition("''")[2], value[:_MOST_VALUE].decode("utf-8", "replace")


def _values(name: bytes, headers: RawHeaders) -> list[bytes]:
    return [value for header, value in headers if header.lower().replace(b"_", b"-") == name]
