"""What a provider said about a failure, cleaned for an admin. Pure.

The texts are a provider's, or those of a page that sent the browser to the callback. Credentials and
addresses of people are redacted: those that are known, and text that looks like one, since a provider may
quote any.
"""

import html
import re
import unicodedata
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, quote_plus

from evergrant_server.core.errors import FAILURES, ErrorCode, Failure
from evergrant_server.core.lifecycle.schedule import UNSENT_CODES
from evergrant_server.core.model import FrozenModel

_REDIRECT_URI = (
    "Compare the redirect URI in the client's registration at the provider, character by character, with the "
    "integration's: evergrant integrations redirect-uri."
)
_FLOW = "Allow the client this flow (its grant types and response types) in its registration at the provider."
_CLIENT_REPAIRS = {  # RFC 6749 sections 4.1.2.1 and 5.2, RFC 8707 section 2
    "invalid_client": "Correct the integration's client id and secret: evergrant integrations put.",
    "invalid_scope": "Request scopes that the provider has and this client may request: the integration's "
    "default scopes, and those that the app names.",
    "unauthorized_client": _FLOW,
    "unsupported_response_type": _FLOW,
    "unsupported_grant_type": _FLOW,
    "access_denied": "Allow the client the requested scopes in its registration at the provider, or request "
    "fewer.",
    "invalid_target": "Correct the resource or audience that the connection names.",
    "invalid_request": _REDIRECT_URI,
    "invalid_grant": _REDIRECT_URI,  # a refusal of the client only where its description blames the URI
    "redirect_uri_mismatch": _REDIRECT_URI,
}
PROVIDER_SAID = "provider_said"  # the member of an audit record's detail
REDACTED = "[redacted]"
CALLBACK_REFUSED = "The provider's callback was refused: "  # begins the detail, in words for an admin
_MOST_ERROR, _MOST_DESCRIPTION = 100, 200  # characters
MOST_OF_A_WHOLE_REPLY = 1000  # of one that no rule and no standard can read
_STANDARD_NAMES = (  # RFC 6749 section 5.2: kept, also beside a client secret that is "client"
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
)
_MOST_READ = 10_000
_SHORTEST_SECRET = 4
_SHORTEST_RANDOM = 10
_LONGEST_NUMBER = 7  # digits: phone numbers and codes are longer
_LONGEST_WORD = 20  # letters
_SEPARATES = ("Zs", "Zl", "Zp", "Cc")  # categories of characters that become a space
_DROPPED = ("Cf", "Cs", "Co", "Cn")  # invisible, bidirectional, without a meaning
_MAIL_ADDRESS = re.compile(r"[^\s@<>()\"',;:]{1,64}(?:@|%40)[^\s@<>()\"',;:]{1,255}")
_QUERY = re.compile(r"(https?://[^\s?#]*)(?:[?#]\S*)?", re.IGNORECASE)  # in linear time
_RUN = re.compile(r"[A-Za-z0-9_\-+/=~.%]+")
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_CHUNK = re.compile(r"[A-Za-z0-9]+")
_CHANGE = re.compile(r"(?<=[A-Za-z])[0-9]|(?<=[0-9])[A-Za-z]")
_VOWEL = re.compile(r"[aeiouy]", re.IGNORECASE)
_CONSONANTS = re.compile(r"[^aeiouy0-9]{6}", re.IGNORECASE)
_ERROR_NUMBER = re.compile(r"[A-Z][A-Z0-9]{1,7}[0-9]{3,7}")  # such as AADB2C90129
_NUMBER = re.compile(r"[0-9]{1,10}")  # an error's name at some providers
_DATE = re.compile(
    r"(?<!\d)(?:19|20)\d\d-[01]\d-[0-3]\d(?:T\d\d)?(?!\d)"
    r"|(?<!\d)[0-3]?\d[./][0-3]?\d[./](?:19|20)\d\d(?!\d)"
)
_GROUPS = re.compile(rf"\d(?:[ \-.()\u2010-\u2015]{{0,3}}\d){{{_LONGEST_NUMBER},}}")  # of phones, cards


class ProviderWords(FrozenModel):
    """An error's name and description as a provider gave them, cleaned and bounded.

    `unauthenticated`: they came by a browser and nothing shows that the provider wrote them.
    """

    status: int | None = None
    error: str | None = None
    description: str | None = None
    unauthenticated: bool = False

    @classmethod
    def cleaned(
        cls,
        error: str | None,
        description: str | None,
        secrets: Iterable[str],
        *,
        status: int | None = None,
        unauthenticated: bool = False,
        most: int = _MOST_DESCRIPTION,
    ) -> "ProviderWords":
        """The words without `secrets`, nor anything that looks like one."""
        known = _forms(secrets)
        number = _NUMBER.fullmatch(error or "") and error not in known
        return cls(
            status=status,
            error=error if number or error in _STANDARD_NAMES else _clean(error, known, _MOST_ERROR),
            description=_clean(description, known, most),
            unauthenticated=unauthenticated,
        )

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.error, self.description)))

    def as_detail(self) -> dict[str, Any]:
        """For an audit record."""
        return {PROVIDER_SAID: self.model_dump(exclude_defaults=True)}


class ReplyFailure(Failure):
    """A failure that follows from a provider's reply. Its words are for admins: they are in no message."""

    said: ProviderWords | None = None

    def with_words(self, words: ProviderWords | None) -> "ReplyFailure":
        self.said = words
        return self


def with_code(failure: Failure, code: ErrorCode) -> Failure:
    """The same reply with another meaning."""
    return ReplyFailure(code).with_words(failure.said if isinstance(failure, ReplyFailure) else None)


def words_in(failure: Failure) -> dict[str, Any]:
    """What the provider said, for the audit record of a failure, or the host to which nothing was sent; empty
    when it said nothing."""
    words = failure.said if isinstance(failure, ReplyFailure) else None
    if failure.code in UNSENT_CODES and "host" in failure.context:
        return {"host": failure.context["host"], "why": failure.detail}
    return {} if words is None else words.as_detail()


def repair_after(code: ErrorCode, error: str | None) -> str:
    """What repairs a failure, where the provider called it `error`: a refused client has many repairs."""
    exact = _CLIENT_REPAIRS.get(error or "") if code is ErrorCode.CLIENT_REJECTED else None
    return exact or FAILURES[code].repair


def looks_secret(text: str) -> bool:
    """Whether a text is a credential or a number of a person, by its looks.

    Random text changes between letters, digits and cases all the time, or can't be pronounced. Words,
    and the names and numbers of errors, don't.
    """
    text = _DATE.sub("", text)
    if _ERROR_NUMBER.fullmatch(text):
        return False
    parts = _PART.findall(text)
    if any(len(part) > (_LONGEST_NUMBER if part.isdigit() else _LONGEST_WORD) for part in parts):
        return True
    if len(text) >= _SHORTEST_RANDOM and sum(map(len, parts)) < 3 * len(parts):
        return True
    return any(_is_random(chunk) for chunk in _CHUNK.findall(text))


def _is_random(chunk: str) -> bool:
    if len(chunk) < _SHORTEST_RANDOM:
        return False
    if len(_CHANGE.findall(chunk)) >= 2:
        return True
    parts = _PART.findall(chunk)
    vowels = len(_VOWEL.findall(chunk))
    unspeakable = _CONSONANTS.search(chunk) is not None or 5 * vowels < len(chunk)
    return unspeakable and not any(part.isdigit() for part in parts) and len(chunk) < 5 * len(parts) + 20


def _forms(secrets: Iterable[str]) -> list[str]:
    """How a reply may quote each secret; longer forms first, which may contain others."""
    known = {secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}
    escaped = {form(secret) for secret in known for form in (_escape, quote_plus, html.escape)}
    return sorted(known | escaped, key=len, reverse=True)


def _escape(text: str) -> str:
    return quote(text, safe="")


def _clean(text: str | None, secrets: list[str], most: int) -> str | None:
    if not text:
        return None
    if len(text) > _MOST_READ:  # the last word may be half of a secret
        text = text[:_MOST_READ].rpartition(" ")[0]
    text = "".join(map(_plain, text))
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    text = _QUERY.sub(r"\1", text)
    text = _MAIL_ADDRESS.sub(REDACTED, text)
    text = _RUN.sub(lambda run: _without_secret(run.group()), text)
    text = _GROUPS.sub(lambda number: _without_number(number.group()), text)
    text = " ".join(text.split())
    return (text if len(text) <= most else f"{text[: most - 1]}…") or None


def _plain(char: str) -> str:
    category = unicodedata.category(char)
    if category in _SEPARATES:
        return " "
    return "" if category in _DROPPED else char


def _without_number(groups: str) -> str:
    """Groups of digits, unless they are dates with little beside them."""
    digits = sum(map(str.isdigit, _DATE.sub("", groups)))
    return REDACTED if digits > _LONGEST_NUMBER else groups


def _without_secret(run: str) -> str:
    """A run of characters of tokens; of a path, which looks like one, each segment is judged by itself."""
    parts = run.split("/") if run.startswith("/") else [run]
    if not any(map(looks_secret, parts)):
        return run
    if not run.startswith("//"):
        return REDACTED
    return "/".join(REDACTED if looks_secret(part) else part for part in parts)
