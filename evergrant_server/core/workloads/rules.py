"""Which tokens of a trusted issuer are an app's: exact claims, all of them required. Pure.

A rule demands what its platform never gives to another workload: names of repositories, projects and accounts
are reused, their numbers aren't.
"""

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

from pydantic import Field

from evergrant_server.core.clock import clocks_apart
from evergrant_server.core.ids import TrustedIssuerId
from evergrant_server.core.model import FrozenModel
from evergrant_server.core.workloads.issuer import IssuerKind, TrustedIssuer

MOST_CLAIMS = 20  # of a rule
_CLOCK_TOLERANCE = timedelta(seconds=60)  # between the issuer's clock and ours
_FIXED = {"iss", "aud", "exp", "nbf", "iat", "jti"}  # compared otherwise, or different in each token

_NUMBER = re.compile(r"[0-9]{1,30}")
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SERVICE_ACCOUNT = re.compile(r"system:serviceaccount:[a-z0-9.-]{1,253}:[a-z0-9.-]{1,253}")
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[\x21-\x7e]{1,512}")
_SPIFFE_PATH = re.compile(r"(/[A-Za-z0-9._-]+)+")
_AWS_PRINCIPAL = "/https:~1~1sts.amazonaws.com~1/principal_id"


class WorkloadRule(FrozenModel):
    """`claims`: a claim's name, or the JSON Pointer (RFC 6901) of a nested one, with its only value.

    `audience`: of Azure alone, where it is an application of the tenant; elsewhere it is Evergrant's issuer.
    """

    issuer_id: TrustedIssuerId
    claims: dict[str, str] = Field(min_length=1, max_length=MOST_CLAIMS)
    audience: str | None = None


class _Demand(NamedTuple):
    """A claim that every rule of a platform must have, and which values it can take."""

    claim: str
    value: re.Pattern[str]
    example: str


_DEMANDS: dict[IssuerKind, tuple[_Demand, ...]] = {
    IssuerKind.GITHUB_ACTIONS: (
        _Demand("repository_id", _NUMBER, "the repository's number: its name may be another's tomorrow"),
        _Demand("repository_owner_id", _NUMBER, "the owner's number: the name may be another's tomorrow"),
    ),
    IssuerKind.KUBERNETES: (_Demand("sub", _SERVICE_ACCOUNT, "system:serviceaccount:<namespace>:<name>"),),
    IssuerKind.GCP: (_Demand("sub", _NUMBER, "the service account's unique number, not its email"),),
    IssuerKind.AZURE: (
        _Demand("tid", _GUID, "the Entra tenant's id"),
        _Demand("oid", _GUID, "the object id of the identity's service principal"),
    ),
    IssuerKind.AWS: (_Demand("sub", _ROLE, "the ARN of the role"),),
    IssuerKind.SPIFFE: (_Demand("sub", re.compile(r"spiffe://.+"), "the workload's SPIFFE ID"),),
    IssuerKind.OIDC: (),
}
_WHICH_JOB = ("environment", "ref", "job_workflow_ref")  # of GitHub Actions: one of them at least


def rule_problem(issuer: TrustedIssuer, rule: WorkloadRule) -> tuple[str, str] | None:
    """The field of a rule that can't be accepted, and why; None for a good one."""
    kind = issuer.kind
    for name, value in rule.claims.items():
        if name in _FIXED:
            return f"claims.{name}", "it is checked with every token, and belongs into no rule"
        if not name or "*" in value or not value:
            return f"claims.{name or '?'}", "there are no patterns: name the exact value"
    for claim, pattern, example in _DEMANDS[kind]:
        if not pattern.fullmatch(rule.claims.get(claim, "")):
            return f"claims.{claim}", f"a rule for {kind.value} needs it: {example}"
    if kind is IssuerKind.GITHUB_ACTIONS and not any(name in rule.claims for name in _WHICH_JOB):
        return "claims", f"a rule for {kind.value} needs one of {', '.join(_WHICH_JOB)} as well"
    if kind is IssuerKind.SPIFFE and not _is_svid_of(issuer, rule.claims["sub"]):
        return "claims.sub", f"it is no SPIFFE ID of {issuer.issuer}"
    if (kind is IssuerKind.AZURE) is (rule.audience is None):
        return (
            "audience",
            "the id of the application that stands for Evergrant in Entra: of azure alone, always",
        )
    return None


def lifetime_problem(claims: Mapping[str, Any], now: datetime) -> str | None:
    """Why a token isn't good now; None when it is. A token without an end is none."""
    clock, tolerance = now.timestamp(), _CLOCK_TOLERANCE.total_seconds()
    expires = _seconds(claims, "exp")
    if expires is None:
        return "exp is missing"
    if expires <= clock - tolerance:
        return f"it has expired: its exp is {clocks_apart(expires, now)}"
    for name in ("iat", "nbf"):
        begins = _seconds(claims, name)
        if name in claims and begins is None:
            return f"{name} is no time"
        if begins is not None and begins > clock + tolerance:
            return f"{name} is in the future: it is {clocks_apart(begins, now)}"
    return None


def token_problem(issuer: TrustedIssuer, header: Mapping[str, Any], claims: Mapping[str, Any]) -> str | None:
    """Why a token that the issuer has signed is no workload's; None for a good one.

    Whose it is, and for whom, `mismatches` says.
    """
    if issuer.kind is IssuerKind.SPIFFE:  # its `iss` may be missing, and says nothing about the trust domain
        if not _is_svid_of(issuer, claims.get("sub")):
            return "sub is no SPIFFE ID of the trust domain"
    elif claims.get("iss") != issuer.issuer:
        return "iss is another issuer"
    check = _OF_PLATFORM.get(issuer.kind)
    return None if check is None else check(header, claims)


def mismatches(rule: WorkloadRule, claims: Mapping[str, Any], ours: str) -> list[str]:
    """The claims of a token that differ from the rule; empty for a token of its app.

    It must be for one audience alone, `ours` or the rule's. Kubernetes writes its one audience as an array.
    """
    audience = rule.audience or ours
    wrong = [] if claims.get("aud") in (audience, [audience]) else ["aud"]
    return wrong + [name for name, value in rule.claims.items() if claim_at(claims, name) != value]


def claim_at(claims: Mapping[str, Any], name: str) -> object:
    """The claim of this name, or at this JSON Pointer; None where there is none."""
    if not name.startswith("/"):
        return claims.get(name)
    value: object = claims
    for part in name[1:].split("/"):
        if not isinstance(value, Mapping):
            return None
        value = cast("Mapping[str, object]", value).get(part.replace("~1", "/").replace("~0", "~"))
    return value


def _is_svid_of(issuer: TrustedIssuer, sub: object) -> bool:
    """True for a SPIFFE ID with a path, in the issuer's trust domain (SPIFFE-ID section 2)."""
    if not isinstance(sub, str) or len(sub) > 2048 or not sub.startswith(issuer.issuer + "/"):
        return False
    path = sub.removeprefix(issuer.issuer)
    return bool(_SPIFFE_PATH.fullmatch(path)) and not {".", ".."} & set(path.split("/"))


def _seconds(claims: Mapping[str, Any], name: str) -> float | None:
    """A moment that a clock can show: JSON's numbers have no end, and some parsers read Infinity."""
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        return None
    return float(value)


def _kubernetes(_: Mapping[str, Any], claims: Mapping[str, Any]) -> str | None:
    """Tokens of before bound service account tokens have neither: they never end."""
    return None if isinstance(claims.get("kubernetes.io"), Mapping) else "kubernetes.io is missing"


def _aws(header: Mapping[str, Any], claims: Mapping[str, Any]) -> str | None:
    """`sub` may be the person or workload that a session acts for: `principal_id` is who asked STS."""
    if header.get("alg") not in ("RS256", "ES384"):
        return "alg is neither RS256 nor ES384"
    if claim_at(claims, _AWS_PRINCIPAL) != claims.get("sub"):
        return "sub isn't the principal that requested it"
    return None


_OF_PLATFORM: dict[IssuerKind, Callable[[Mapping[str, Any], Mapping[str, Any]], str | None]] = {
    IssuerKind.KUBERNETES: _kubernetes,
    IssuerKind.AWS: _aws,
}
