"""The issuers of workload tokens that a tenant trusts, and for how long their keys are good. Pure."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from evergrant_server.core.ids import TenantRow, TrustedIssuerId

KEYS_SERVE = timedelta(hours=24)  # after the last good reading, however long the issuer can't be reached
SHORTEST_CACHE = timedelta(minutes=5)
LONGEST_CACHE = KEYS_SERVE / 2  # so that the readings of half a day may fail
USUAL_CACHE = timedelta(hours=1)  # where the issuer doesn't say
REQUEST_INTERVAL = timedelta(minutes=5)  # between two readings that a token has caused
_READING = timedelta(seconds=10)  # a reading that was asked for longer ago isn't waited for

X509_SVID = "x509-svid"  # the use of a bundle's authorities (SPIFFE Trust Domain and Bundle section 4.2.2)
_SPIFFE = "spiffe://"


class IssuerKind(StrEnum):
    """Whose tokens an issuer signs, which decides what a rule must demand of them."""

    GITHUB_ACTIONS = "github_actions"
    KUBERNETES = "kubernetes"  # a cluster's service accounts
    GCP = "gcp"  # service accounts of Google Cloud
    AZURE = "azure"  # managed identities and applications of a Microsoft Entra tenant
    AWS = "aws"  # roles of an account, by GetWebIdentityToken
    SPIFFE = "spiffe"  # SVIDs of a trust domain
    OIDC = "oidc"  # every other OpenID Connect issuer


# hosts that only one kind of issuer has, so that none is taken for one with weaker rules
_HOSTS = {
    "token.actions.githubusercontent.com": IssuerKind.GITHUB_ACTIONS,
    "accounts.google.com": IssuerKind.GCP,
    "container.googleapis.com": IssuerKind.KUBERNETES,
    "login.microsoftonline.com": IssuerKind.AZURE,
    "sts.windows.net": IssuerKind.AZURE,
}
_DOMAINS = {".tokens.sts.global.api.aws": IssuerKind.AWS}
_NAMED = {IssuerKind.GCP, IssuerKind.AWS}  # kinds with no other hosts


class TrustedIssuer(TenantRow):
    """An issuer. `issuer` is its `iss`, exactly; of a trust domain it is `spiffe://<trust domain>`.

    `jwks_uri`: where its keys are; None: where its OpenID Connect metadata says. Of a trust domain it is the
    URL of the bundle.
    """

    id: TrustedIssuerId
    name: str
    kind: IssuerKind
    issuer: str
    jwks_uri: str | None = None
    keys: tuple[dict[str, Any], ...] | None = None  # public, as the last good reading found them
    keys_at: datetime | None = None  # of that reading
    keys_tried_at: datetime | None = None  # of the last reading, good or not
    keys_next_at: datetime | None = None  # when they are read again
    keys_requested_at: datetime | None = None  # when the API last asked for a reading
    keys_problem: str | None = None  # of the last reading, if it failed
    created_at: datetime
    changed_at: datetime

    def usable_keys(self, now: datetime) -> tuple[dict[str, Any], ...] | None:
        """The keys that tokens may be checked with; None when the last good reading is too long ago."""
        fresh = self.keys_at is not None and now < self.keys_at + KEYS_SERVE
        return self.keys if fresh else None

    def usable_authorities(self, now: datetime) -> tuple[str, ...] | None:
        """The trust domain's authorities for X.509-SVIDs, base64 of DER; None when they are too old."""
        keys = self.usable_keys(now)
        return None if keys is None else tuple(key["x5c"][0] for key in keys if key.get("use") == X509_SVID)

    def has_spiffe_id(self, value: str) -> bool:
        """True for the SPIFFE ID of a workload of this trust domain."""
        return self.kind is IssuerKind.SPIFFE and value.startswith(f"{self.issuer}/")

    def may_request_keys(self, now: datetime) -> bool:
        """True when a token may cause a reading: it causes one in REQUEST_INTERVAL at most."""
        return self.keys_requested_at is None or self.keys_requested_at + REQUEST_INTERVAL <= now

    def is_being_read(self, now: datetime) -> bool:
        """True while a reading that was just asked for hasn't ended."""
        asked, tried = self.keys_requested_at, self.keys_tried_at
        return asked is not None and now - asked < _READING and (tried is None or tried < asked)

    def without_keys(self) -> "TrustedIssuer":
        """With its first keys, or those of another place, to be read."""
        names = ("keys", "keys_at", "keys_tried_at", "keys_next_at", "keys_requested_at", "keys_problem")
        return self.__replace__(**dict.fromkeys(names))

    def with_keys(
        self, keys: tuple[dict[str, Any], ...], now: datetime, max_age: timedelta | None
    ) -> "TrustedIssuer":
        """After a good reading."""
        cached = min(max(USUAL_CACHE if max_age is None else max_age, SHORTEST_CACHE), LONGEST_CACHE)
        return self.__replace__(
            keys=keys, keys_problem=None, keys_at=now, keys_tried_at=now, keys_next_at=now + cached
        )

    def with_problem(self, problem: str, now: datetime) -> "TrustedIssuer":
        """After a reading that failed: the old keys stay, and the next one comes soon."""
        return self.__replace__(keys_problem=problem, keys_tried_at=now, keys_next_at=now + SHORTEST_CACHE)


def kind_problem(kind: IssuerKind, issuer: str) -> str | None:
    """Why this URL can't be an issuer of this kind; None when it can."""
    if kind is IssuerKind.SPIFFE:
        return (
            None if is_trust_domain(issuer) else "a trust domain is spiffe://, a name in lower case, no path"
        )
    host = urlsplit(issuer).hostname or ""
    only = _HOSTS.get(host) or next((of for end, of in _DOMAINS.items() if host.endswith(end)), None)
    if only is not None and only is not kind:
        return f"{host} is of the kind {only.value}"
    if only is None and kind in _NAMED:
        return f"no issuer of the kind {kind.value} is at {host}"
    return None


def is_trust_domain(value: str) -> bool:
    """True for `spiffe://` and a trust domain's name (SPIFFE-ID section 2.1)."""
    name = value.removeprefix(_SPIFFE)
    plain = set("abcdefghijklmnopqrstuvwxyz0123456789.-_")
    return value.startswith(_SPIFFE) and 0 < len(name) <= 255 and set(name) <= plain
