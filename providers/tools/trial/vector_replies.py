"""The replies of a vector: redacted, dated for the vector's time, with the tokens that must be read. Pure."""

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote_plus

from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import Failure
from evergrant_server.core.provider_words import looks_secret
from providers.definition.schema import ProviderSpec
from providers.responses.raw_reply import RawReply, UnreadableBody, parse_body, value_at
from providers.responses.reply_error import body_text, rule_of
from providers.responses.token_response import read_tokens
from providers.tools.trial.redaction import REDACTED, KeptFields, Redactor
from providers.tools.trial.token_requests import SeenReply

VECTOR_TIME = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)  # of every vector: docs/guide/adding-a-provider.md
_FIRST = {
    "access_token": "<new access token>",
    "refresh_token": "<new refresh token>",
    "id_token": "<id token>",
}
_SECOND = {"access_token": "<second access token>", "refresh_token": "<second refresh token>"}
_HEADERS = ("www-authenticate", "retry-after")
_MOST_TEXT = 2000  # characters of a body that is no object
_RUN = re.compile(r"[A-Za-z0-9_\-+~.%]+")  # of characters of tokens


def written_reply(spec: ProviderSpec, redactor: Redactor, seen: SeenReply) -> dict[str, Any]:
    """Status, kept headers and body of a reply, without secrets and personal data."""
    reply = seen.reply
    written: dict[str, Any] = {"status": reply.status}
    headers = {name: redactor.text(reply.headers[name]) for name in _HEADERS if name in reply.headers}
    written |= {"headers": headers} if headers else {}
    rule = rule_of(spec, reply)
    if rule is not None and any(test.body is not None for test in rule.tests()):
        return written | {"text": redactor.text(body_text(reply))}
    try:
        data = parse_body(reply.body, prefix=spec.response.strip_body_prefix)
    except UnreadableBody:
        markup = reply.body.lstrip().startswith(b"<")
        return written | {"text": "<html></html>" if markup else ""}
    fields = redactor.fields(data, kept_fields(spec, seen))
    if seen.tokens is None:
        return written | {"json": fields}
    _move_dates(spec, fields, seen.tokens)
    form = (
        not reply.body.lstrip().startswith((b"{", b"\xef\xbb\xbf{")) and not spec.response.strip_body_prefix
    )
    return written | ({"text": _as_form(fields)} if form else {"json": fields})


def refused_reply(spec: ProviderSpec, reply: RawReply) -> dict[str, Any]:
    """A reply that isn't of a trial, as a vector has it; of a text or a page what it says.

    No trial has learnt its secrets, so that everything goes that looks like one.
    """
    redactor, reply = Redactor(), reply.with_body(_without_runs(reply.body))
    written = written_reply(spec, redactor, SeenReply("refused", reply))
    try:
        parse_body(reply.body, prefix=spec.response.strip_body_prefix)
    except UnreadableBody:
        written["text"] = redactor.text(body_text(reply))[:_MOST_TEXT]
    return written


def _without_runs(body: bytes) -> bytes:
    """The body without texts that look like credentials."""
    text = body.decode("utf-8-sig", "replace")
    try:
        return json.dumps(_plain(json.loads(text)), ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return _plain(text).encode()


def _plain(value: Any) -> Any:
    match value:
        case str():
            return _RUN.sub(lambda run: REDACTED if looks_secret(run.group()) else run.group(), value)
        case list():
            return [_plain(item) for item in value]
        case dict():
            return {name: _plain(item) for name, item in value.items()}
        case _:
            return value


def kept_fields(spec: ProviderSpec, seen: SeenReply) -> KeptFields:
    """The fields that the reader of this reply reads."""
    response = spec.response
    paths: Iterable[str | None] = (
        *(response.expires_in_path, response.expires_at_path, response.refresh_expires_in_path),
        *(response.refresh_expires_at_path, spec.status_field),
        *(path for rule in spec.error_rules for path in (rule.path, rule.code_path)),
        *(test.path for rule in spec.error_rules for test in rule.when),
        *([response.additional_tokens.key] if response.additional_tokens else []),
    )
    others: Iterable[str | None] = (
        *(response.access_token_path, response.refresh_token_path, response.unwrap_path),
        *(response.additional_tokens.path if response.additional_tokens else None, *response.metadata_paths),
        *(rule.path for rule in response.metadata_patterns.values()),
    )
    error = seen.tokens is None
    return KeptFields(
        filter(None, paths),
        response.scope_path,
        filter(None, others),
        {} if error else _placeholders(seen),
        error=error,
    )


def _placeholders(seen: SeenReply) -> dict[str, str]:
    """The placeholder of each token of a reply; a token that was sent is the old one."""
    assert seen.tokens is not None
    words = _words(seen.tokens, _FIRST) | dict(seen.sent)
    for slot in list(seen.tokens.further.values())[:1]:
        words |= _words(slot, _SECOND)
    return words


def _words(tokens: TokenSet, names: dict[str, str]) -> dict[str, str]:
    values = {word: getattr(tokens, name) for name, word in names.items()}
    return {secret.reveal(): word for word, secret in values.items() if secret is not None}


def written_tokens(spec: ProviderSpec, seen: SeenReply, reply: dict[str, Any]) -> dict[str, Any]:
    """The tokens that must be read from a reply, and those of further slots (`further`)."""
    assert seen.tokens is not None
    words = _placeholders(seen)
    written = _token_fields(seen.tokens, words)
    metadata = _metadata_of(spec, reply, words, refreshing=seen.kind == "refresh")
    written |= {"metadata": metadata} if metadata else {}
    further = {name: _token_fields(tokens, words) for name, tokens in seen.tokens.further.items()}
    return {"tokens": written} | ({"further": further} if further else {})


def _token_fields(tokens: TokenSet, words: dict[str, str]) -> dict[str, Any]:
    def word(secret: Any) -> str | None:
        return None if secret is None else words.get(secret.reveal(), "redacted")

    seconds = tokens.expires_in
    return {
        "access_token": word(tokens.access_token),
        "refresh_token": word(tokens.refresh_token),
        "expires_in": int(seconds) if seconds is not None else None,
        "scopes": list(tokens.scopes) if tokens.scopes is not None else None,
    }


def _metadata_of(
    spec: ProviderSpec, reply: dict[str, Any], words: dict[str, str], *, refreshing: bool
) -> dict[str, Any]:
    """The metadata that the reader finds in the redacted reply."""
    body = json.dumps(reply["json"]) if "json" in reply else str(reply["text"])
    for word in words.values():
        body = body.replace(word, "sample-token")
    raw = RawReply(reply["status"], {}, body.encode())
    try:
        read = read_tokens(spec, raw, requested_scopes=(), refreshing=refreshing, now=VECTOR_TIME)
    except Failure:
        return {}
    return read.metadata


def _move_dates(spec: ProviderSpec, fields: dict[str, Any], tokens: TokenSet) -> None:
    """Dates of expiry are as far from the vector's time as they were from the trial's."""
    response = spec.response
    inner = value_at(fields, response.unwrap_path)
    data = inner if isinstance(inner, dict) else fields
    for path, format, seconds in (
        (response.expires_at_path, response.expires_at_format, tokens.expires_in),
        (response.refresh_expires_at_path, response.refresh_expires_at_format, tokens.refresh_expires_in),
    ):
        if path is None or seconds is None or value_at(data, path) is None:
            continue
        parent, _, name = path.rpartition(".")
        holder = value_at(data, parent) if parent else data
        if isinstance(holder, dict):
            holder[name] = _date(VECTOR_TIME + timedelta(seconds=int(seconds)), format)


def _date(moment: datetime, format: str) -> str | int:
    if format == "iso8601":
        return moment.isoformat().replace("+00:00", "Z")
    return int(moment.timestamp()) * (1000 if format == "epoch_ms" else 1)


def _as_form(fields: dict[str, Any]) -> str:
    placeholder = {*_FIRST.values(), *_SECOND.values(), "<refresh token>", "<access token>"}
    return "&".join(
        f"{quote_plus(name)}={value if value in placeholder else quote_plus(str(value))}"
        for name, value in fields.items()
    )
