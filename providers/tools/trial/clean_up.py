"""Ends what a trial obtained at the provider, however the trial ended."""

from collections.abc import Callable

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from providers.definition.schema import ProviderSpec
from providers.tools.trial.token_requests import TokenRequests, TrialGrant


async def end_grants(requests: TokenRequests, tell: Callable[[str], None]) -> None:
    """Revoke every token that may still be valid, and say so. Raises nothing."""
    problems = [problem for grant in requests.grants if (problem := await _end(requests, grant))]
    if problems:
        detail = requests.redactor.line(problems[0])
        tell(
            f"NOT revoked: {len(problems)} of {len(requests.grants)} grants ({detail}). "
            "End them in your account's settings at the provider."
        )
    elif requests.grants and not requests.lost:
        tell("All grants that were obtained are revoked.")
    if requests.lost:
        tell(
            "A reply was lost that may have had tokens, which can't be revoked from here. "
            "Look for a grant in your account's settings at the provider."
        )


def token_to_revoke(spec: ProviderSpec, grant: TrialGrant) -> tuple[Secret, str]:
    """The token whose revocation ends a grant, and its type."""
    rule = spec.revocation
    if grant.renewal is not None and (rule is None or rule.token == "refresh_token"):
        return grant.renewal, "refresh_token"
    return grant.tokens.access_token, "access_token"


async def _end(requests: TokenRequests, grant: TrialGrant) -> str | None:
    """Revoke a grant and its access token. The problem, where the provider didn't confirm the end."""
    spec, problem = requests.setup.spec, None
    token, hint = token_to_revoke(spec, grant)
    if not grant.ended:
        problem = await _revocation_problem(requests, grant, token, hint)
        grant.ended = problem is None
    if spec.own_revocation is None and hint == "refresh_token":
        await _revocation_problem(requests, grant, grant.tokens.access_token, "access_token")
    return problem


async def _revocation_problem(
    requests: TokenRequests, grant: TrialGrant, token: Secret, hint: str
) -> str | None:
    """None where the provider confirmed the end, or says that the token is dead.

    A status alone says neither: a wrong revocation endpoint answers 404 as well.
    """
    try:
        seen = await requests.revoke("clean-up", grant, token, hint)
    except Failure as failure:
        return failure.detail
    failure = seen.failure
    return None if failure is None or failure.code is ErrorCode.GRANT_REJECTED else failure.detail
