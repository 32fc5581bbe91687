"""Which redirect URIs a client may have, and whether one that it names is its own. Pure.

RFC 8252 section 7: a web page (https), the loopback interface, or a scheme of the app's own. RFC 9700
section 2.1: compared character by character, but for the port of a loopback address (RFC 8252 section 7.3).
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from urllib.parse import urlsplit

MOST_REDIRECT_URIS = 20
_LONGEST = 2000
_CHARACTERS = re.compile(r"\A[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=%]+\Z")  # RFC 3986 without `#`
_LOOPBACK = re.compile(r"\Ahttp://(127\.0\.0\.1|\[::1\]|localhost)(?::([0-9]{1,5}))?(?=[/?]|\Z)")
_HOST = re.compile(r"\A[A-Za-z0-9](?:[A-Za-z0-9.\-]*[A-Za-z0-9])?\Z|\A[0-9A-Fa-f:.]+\Z")
_SCHEME = re.compile(r"\A[a-z][a-z0-9+.\-]*\Z")
# what browsers run or open themselves, and what no app of a device may take over
_RESERVED = frozenset(
    {"about", "blob", "chrome", "data", "file", "filesystem", "ftp", "http", "https", "intent", "javascript"}
    | {"mailto", "resource", "sms", "tel", "urn", "vbscript", "view-source", "ws", "wss"}
)


class RedirectKind(StrEnum):
    """Where a redirect leads."""

    WEB = "web"
    LOOPBACK = "loopback"  # this computer
    PRIVATE_USE = "private_use"  # an app on this device (RFC 8252 section 7.1)


def kind_of_redirect(uri: str) -> RedirectKind:
    """Of a redirect URI that `redirect_problem` has nothing to say about."""
    if _LOOPBACK.match(uri):
        return RedirectKind.LOOPBACK
    return RedirectKind.WEB if uri.lower().startswith("https:") else RedirectKind.PRIVATE_USE


def redirect_problem(uri: str, *, any_scheme: bool = False) -> str | None:
    """Why no client may have this redirect URI; None for one that it may have.

    `any_scheme`: an admin answers for a scheme of one word, which any app of a device can take for its own.
    """
    if not 0 < len(uri) <= _LONGEST or not _CHARACTERS.match(uri):
        return f"a redirect URI is a URI of at most {_LONGEST} characters, without a fragment"
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return "a redirect URI is no URI"
    if parts.scheme == "https":
        known = _HOST.match(parts.hostname or "") and "@" not in parts.netloc and port != 0
        return None if known else "an https redirect URI has a host, and no user name"
    if parts.scheme == "http":
        here = _LOOPBACK.match(uri) and port != 0
        return None if here else "http is for 127.0.0.1, [::1] and localhost alone: use https"
    if not _SCHEME.match(parts.scheme) or parts.scheme in _RESERVED:
        return "the scheme is none that an app can have for itself"
    if "." not in parts.scheme and not any_scheme:
        return "a scheme of the app's own is a reversed domain name: com.example.app (RFC 8252 section 7.1)"
    return None


def is_own_redirect(registered: Iterable[str], presented: str) -> bool:
    """Whether a client has this redirect URI. Any port of a loopback address is its own."""
    match = _LOOPBACK.match(presented)
    if match is not None and match[2] is not None and not 0 < int(match[2]) < 65536:
        return False
    plain = without_port(presented)
    return any(uri == presented or without_port(uri) == plain for uri in registered)


def where_it_leads(uri: str) -> str:
    """The redirect's host or scheme, as a page shows it."""
    match kind_of_redirect(uri):
        case RedirectKind.WEB:
            return urlsplit(uri).netloc.lower()
        case RedirectKind.LOOPBACK:
            return "a program on this computer"
        case RedirectKind.PRIVATE_USE:
            return f"an app on this device ({urlsplit(uri).scheme})"


def without_port(uri: str) -> str:
    match = _LOOPBACK.match(uri)
    return uri if match is None else f"http://{match[1]}{uri[match.end() :]}"
