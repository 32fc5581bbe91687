"""What a step of a trial saw, what the definition says of it, and what differs. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.connections.replaced import RevocationReach
from evergrant_server.core.errors import ErrorCode, Failure
from providers.definition.schema import ProviderSpec
from providers.responses.error_mapping import error_name
from providers.responses.raw_reply import RawReply, UnreadableBody, parse_body, value_at

_SAME_LIFETIME_S = 60.0  # a lifetime that counts from the consent is shorter in later replies
_REPAIRS = {
    ErrorCode.GRANT_REJECTED: "terminal_error_codes, or error_rules with means: dead_token",
    ErrorCode.CLIENT_REJECTED: "client_error_codes, or error_rules with means: client",
}


@dataclass
class Observation:
    """One step: what it `saw`, what the `definition` says, and what `differs`."""

    step: str
    saw: list[str] = field(default_factory=list)
    definition: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)


def observe_tokens(
    step: str,
    spec: ProviderSpec,
    reply: RawReply,
    tokens: TokenSet,
    requested: tuple[str, ...],
    before: TokenSet | None = None,
) -> Observation:
    """The tokens of a reply; `before` are those that were refreshed."""
    seen = Observation(step, [f"status {reply.status}", "an access token"])
    _observe_refresh_token(seen, spec, reply, tokens, before)
    _observe_lifetime(seen, "access token", tokens.expires_in, spec.access_token_lifetime_s, "access_token")
    if tokens.refresh_token is not None:
        known = spec.refresh_token_lifetime_s
        named = tokens.refresh_expires_in if tokens.refresh_expires_in != known else None
        _observe_lifetime(seen, "refresh token", named, known, "refresh_token")
    _observe_scopes(seen, tokens.scopes, requested)
    if tokens.id_token is not None:
        seen.saw.append("an id token")
    seen.saw += [f"tokens of the slot {name}" for name in tokens.further]
    return seen


def _observe_refresh_token(
    seen: Observation, spec: ProviderSpec, reply: RawReply, tokens: TokenSet, before: TokenSet | None
) -> None:
    if before is None:
        seen.definition.append(f"refresh_supported: {_yaml(spec.refresh_supported)}")
        expected = spec.refresh_supported and not spec.refreshes_with_access_token
        came = tokens.refresh_token is not None or bool(_raw_value(spec, reply, "refresh_token"))
        seen.saw.append("a refresh token" if came else "no refresh token")
        if expected and not came:
            seen.differs.append(
                "no refresh token came: a scope or a parameter may be missing (offline_scope)"
            )
        if came and not spec.refresh_supported:
            seen.differs.append("a refresh token came, and refresh_supported is false")
        return
    if spec.refreshes_with_access_token:
        return
    rotates = tokens.refresh_token is not None and tokens.refresh_token != before.refresh_token
    words = "a new refresh token" if rotates else "the same refresh token"
    seen.saw.append(words if tokens.refresh_token is not None else "no refresh token: the old one stays")
    seen.definition.append(f"refresh_rotates: {_yaml(spec.refresh_rotates)}")
    if rotates is not spec.refresh_rotates:
        unknown = " (one refresh is no proof that it never changes)" if not rotates else ""
        seen.differs.append(f"refresh_rotates would be {_yaml(rotates)} by this reply{unknown}")


def _observe_lifetime(
    seen: Observation, name: str, seconds: float | None, known: float | None, prefix: str
) -> None:
    seen.saw.append(f"the {name} lives {seconds:g} s" if seconds is not None else f"no expiry of the {name}")
    if known is not None:
        seen.definition.append(f"{prefix}_lifetime_s: {known:g}")
        if seconds is not None and abs(seconds - known) > _SAME_LIFETIME_S:
            seen.differs.append(f"{prefix}_lifetime_s would be {seconds:g}")


def _observe_scopes(seen: Observation, granted: tuple[str, ...] | None, requested: tuple[str, ...]) -> None:
    if granted is None:
        seen.saw.append("no scopes in the reply: those requested are granted")
        return
    seen.saw.append(f"scopes: {' '.join(granted) or 'none'}")
    missing = [scope for scope in requested if scope not in granted]
    further = [scope for scope in granted if scope not in requested]
    if missing:
        seen.differs.append(f"requested and not granted: {' '.join(missing)}")
    if further:
        seen.differs.append(f"granted and not requested: {' '.join(further)}")


def observe_refusal(
    step: str, spec: ProviderSpec, reply: RawReply, failure: Failure | None, expected: ErrorCode
) -> Observation:
    """The refusal of a token or a client; `failure` is how it is read, None for a success."""
    seen = Observation(step, [f"status {reply.status}"])
    names = ("terminal_error_codes", "client_error_codes", "retryable_error_codes", "rate_limit_error_codes")
    named: Iterator[tuple[str, tuple[str, ...]]] = ((name, getattr(spec, name)) for name in names)
    seen.definition += [f"{name}: {', '.join(codes)}" for name, codes in named if codes]
    if spec.error_rules:
        seen.definition.append(f"error_rules: {len(spec.error_rules)}")
    if failure is None:
        seen.saw.append("accepted")
        seen.differs.append("it was accepted, and a refusal was expected")
        return seen
    error = error_name(spec, reply)
    seen.saw.append("no readable error" if error is None else f"the error {error or 'without a name'}")
    seen.saw.append(f"read as {failure.code}")
    if failure.code is not expected:
        seen.differs.append(f"it should be read as {expected}: {_REPAIRS[expected]}")
    return seen


def observe_revocation(spec: ProviderSpec, reply: RawReply, failure: Failure | None) -> Observation:
    """The reply to a revocation."""
    seen = Observation("revocation", [f"status {reply.status}"])
    statuses = spec.revocation.success_statuses if spec.revocation else (200, 204)
    seen.definition.append(f"success_statuses: {', '.join(map(str, statuses))}")
    if failure is None:
        seen.saw.append("confirmed")
    else:
        seen.saw.append(f"read as {failure.code}")
        seen.differs.append("the revocation was not confirmed")
    return seen


def observe_reach(spec: ProviderSpec, *, other_grant_lives: bool) -> Observation:
    """Whether a revocation has ended the other grant of the same account."""
    reach = RevocationReach.TOKEN if other_grant_lives else RevocationReach.GRANT
    seen = Observation(
        "reach", [f"the other grant of this account {'lives' if other_grant_lives else 'has ended'}"]
    )
    seen.definition.append(f"revocation.reach: {spec.revocation_reach}")
    if spec.revocation_reach is not reach:
        seen.differs.append(f"revocation.reach would be {reach}")
    return seen


def observe_reuse(spec: ProviderSpec, *, accepted: bool, current_lives: bool) -> Observation:
    """What a second use of a rotated refresh token did."""
    seen = Observation("second use", ["accepted" if accepted else "refused"])
    seen.saw.append(f"the current refresh token {'still works' if current_lives else 'has ended as well'}")
    seen.definition.append(
        f"rotation_grace_s: {_yaml(spec.rotation_grace_s)}, on_reuse: {_yaml(spec.on_reuse)}"
    )
    if accepted and not spec.rotation_grace_s:
        seen.differs.append("a used refresh token was accepted, and rotation_grace_s names no grace")
    if not accepted and spec.rotation_grace_s:
        seen.differs.append("a used refresh token was refused at once, and rotation_grace_s names a grace")
    if not current_lives and spec.on_reuse is None:
        seen.differs.append("on_reuse would be family_revoked")
    if current_lives and not accepted and spec.on_reuse is not None:
        seen.differs.append("on_reuse is family_revoked, and the family lives")
    return seen


def _raw_value(spec: ProviderSpec, reply: RawReply, path: str) -> Any:
    try:
        return value_at(parse_body(reply.body, prefix=spec.response.strip_body_prefix), path)
    except UnreadableBody:
        return None


def _yaml(value: object) -> str:
    if value is None:
        return "unknown"
    return str(value).lower() if isinstance(value, bool) else str(value)
