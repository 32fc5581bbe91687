"""The two requests of the device flow, and their replies (RFC 8628). Pure.

Error messages quote no content of a reply.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from evergrant_server.core.connections.device_code import DEFAULT_INTERVAL_S, DeviceCode, DevicePoll
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.provider_words import ReplyFailure
from evergrant_server.core.secret import Secret
from evergrant_server.core.text import json_type
from providers.definition.schema import ProviderSpec
from providers.requests.request_format import ProviderAccess, ProviderRequest, token_request
from providers.responses.error_mapping import (
    error_name,
    raise_for_failure,
    reply_fields,
    unreadable_reply,
)
from providers.responses.raw_reply import RawReply, UnreadableBody
from providers.responses.reply_words import words_of_reply
from providers.responses.token_response import read_tokens

DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
_DEVICE_CODE = re.compile(r"[\x21-\x7e]{1,4096}")
_USER_CODE = re.compile(r"[\x20-\x7e]{1,64}")  # typed in by the subject
_MAX_URL_LENGTH = 2048
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MAX_LIFETIME_S = 86_400.0
_INTERVALS_S = (0.0, 300.0)

_PENDING_ERRORS = {"authorization_pending": DevicePoll.PENDING, "slow_down": DevicePoll.SLOW_DOWN}
_FINAL_ERRORS = {"access_denied": ErrorCode.CONSENT_DENIED, "expired_token": ErrorCode.CONSENT_EXPIRED}


class DevicePending(Failure):
    """The device code is still valid: poll again after the interval that `poll` determines."""

    def __init__(self, poll: DevicePoll) -> None:
        super().__init__(ErrorCode.REFRESH_PENDING, f"the device code is {poll.value}")
        self.poll = poll


def device_authorization_request(provider: ProviderAccess, scopes: Sequence[str]) -> ProviderRequest:
    """The device authorization request (RFC 8628 section 3.1). Raises Failure INVALID_REQUEST."""
    spec = provider.spec
    spec.require_usable(Flow.DEVICE_CODE)
    url = provider.endpoints.device_authorization_endpoint
    if url is None:
        detail = f"{spec.name} has no device authorization endpoint"
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="flow", provider=spec.name)
    fields = {"client_id": provider.client.client_id}
    if scopes:
        fields[spec.scope_param_name] = spec.scope_separator.join(scopes)
    request = token_request(provider, DEVICE_CODE, provider.filled(spec.token_params))
    return replace(request, url=url, fields=fields, requests_tokens=False)


def device_token_request(provider: ProviderAccess, device_code: Secret) -> ProviderRequest:
    """The device access token request (RFC 8628 section 3.4). Raises Failure INVALID_REQUEST."""
    provider.spec.require_usable(Flow.DEVICE_CODE)
    fields = provider.filled(provider.spec.token_params)
    fields |= {"device_code": device_code.reveal(), "client_id": provider.client.client_id}
    return token_request(provider, DEVICE_CODE, fields)


def read_device_authorization(spec: ProviderSpec, reply: RawReply, now: datetime) -> DeviceCode:
    """The codes of a device authorization response. Raises Failure as `read_tokens`."""
    raise_for_failure(spec, reply, (200,), at="device")
    data = reply_fields(spec, reply)
    try:
        complete = data.get("verification_uri_complete")
        return DeviceCode(
            device_code=Secret(_checked_text(data.get("device_code"), "a device code", _DEVICE_CODE)),
            user_code=_checked_text(data.get("user_code"), "a user code", _USER_CODE),
            # Google uses `verification_url`, from a draft of the RFC
            verification_uri=_checked_url(data.get("verification_uri", data.get("verification_url"))),
            verification_uri_complete=None if complete is None else _checked_url(complete),
            expires_at=now
            + timedelta(seconds=_checked_seconds(data.get("expires_in"), (1.0, _MAX_LIFETIME_S))),
            interval_s=_checked_seconds(data.get("interval", DEFAULT_INTERVAL_S), _INTERVALS_S),
        )
    except UnreadableBody as why:
        raise unreadable_reply(spec, reply, str(why)) from None


def read_device_token(
    spec: ProviderSpec, reply: RawReply, *, requested_scopes: Sequence[str], now: datetime
) -> TokenSet:
    """The tokens after the subject's approval (RFC 8628 section 3.5).

    Raises DevicePending while polling goes on, Failure CONSENT_DENIED and CONSENT_EXPIRED, and as
    `read_tokens`.
    """
    error = error_name(spec, reply, "device")
    if error in _PENDING_ERRORS:
        raise DevicePending(_PENDING_ERRORS[error])
    if error in _FINAL_ERRORS:
        words = words_of_reply(spec, reply, error)
        raise ReplyFailure(_FINAL_ERRORS[error], provider=spec.name).with_words(words)
    if reply.status == 429:
        raise DevicePending(DevicePoll.SLOW_DOWN)
    if reply.status >= 500:
        raise DevicePending(DevicePoll.NO_ANSWER)
    return read_tokens(spec, reply, requested_scopes=requested_scopes, refreshing=False, now=now, at="device")


def _checked_text(value: object, noun: str, shape: re.Pattern[str]) -> str:
    if not isinstance(value, str):
        raise UnreadableBody(f"{noun} that is {json_type(value)}")
    if not shape.fullmatch(value):
        raise UnreadableBody(f"{noun} with invalid characters or length")
    return value


def _checked_url(value: object) -> str:
    """A URL to which the subject may be sent: https, or http on loopback."""
    if not isinstance(value, str):
        raise UnreadableBody(f"a verification address that is {json_type(value)}")
    try:
        url = urlsplit(value)
        host = url.hostname
    except ValueError:
        raise UnreadableBody("a verification address that is not a URL") from None
    safe = url.scheme == "https" or (url.scheme == "http" and host in _LOOPBACK)
    plain = value.isascii() and value.isprintable() and not set(value) & set(' "<>\\')
    if not host or "@" in url.netloc or not safe or not plain or len(value) > _MAX_URL_LENGTH:
        raise UnreadableBody("a verification address that is unsafe")
    return value


def _checked_seconds(value: object, bounds: tuple[float, float]) -> float:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)  # some servers send numbers as strings
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnreadableBody(f"a time that is {json_type(value)}")
    least, most = bounds
    if not least <= value <= most:
        raise UnreadableBody("a time out of bounds")
    return float(value)
