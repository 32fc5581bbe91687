"""Checks of the trusted issuers of workload tokens."""

from evergrant_server.cli.doctor import CheckFailed
from evergrant_server.cli.doctor.database import _ring, _store
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.workloads.issuer import KEYS_SERVE, TrustedIssuer
from evergrant_server.settings import Settings

_MOST_NAMED = 5


async def trusted_issuers(settings: Settings) -> str:
    """Find issuers whose keys couldn't be read the last time: a day later their apps can't get tokens."""
    async with _store(settings, _ring(settings)[0]) as store, store.read() as tx:
        failing = await tx.trusted_issuers.with_problems(_MOST_NAMED + 1)
    if not failing:
        return "the keys of every trusted issuer could be read"
    rest = " And more." if len(failing) > _MOST_NAMED else ""
    raise CheckFailed(
        " ".join(_named(issuer) for issuer in failing[:_MOST_NAMED]) + rest,
        "Correct the issuer, or where its keys are: evergrant issuers put NAME KIND ISSUER --jwks-uri URL",
    )


def _named(issuer: TrustedIssuer) -> str:
    left = "no keys serve"
    if issuer.keys_at is not None and issuer.usable_keys(SystemClock().now()):
        left = f"the last good keys serve until {issuer.keys_at + KEYS_SERVE:%Y-%m-%d %H:%M} UTC"
    return f"{issuer.name} (tenant {issuer.tenant}): {issuer.keys_problem}; {left}."
