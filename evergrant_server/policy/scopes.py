"""Scopes, as a deny compares them: by the names that a provider has for one. Pure.

An allow compares exactly.
"""

from collections.abc import Iterable

from evergrant_server.core.connections.grant import UNKNOWN_SCOPE

Aliases = tuple[frozenset[str], ...]  # each has the names of one scope, without case


def denied_scopes(scopes: Iterable[str], denied: Iterable[str], aliases: Aliases = ()) -> tuple[str, ...]:
    """Those of the scopes that are denied. One that isn't known is each that is denied."""
    wanted = [(folded(it), scope_names(it, aliases)) for it in denied]
    return tuple(
        scope
        for scope in scopes
        if scope == UNKNOWN_SCOPE
        or any(own in scope_names(scope, aliases) or folded(scope) in names for own, names in wanted)
    )


def scope_names(scope: str, aliases: Aliases) -> set[str]:
    """All that a provider calls it: the aliases of its definition, and of a URL what follows the last `/`,
    as `Mail.Read` of `https://graph.microsoft.com/Mail.Read`."""
    own = folded(scope)
    names = {own}
    for group in aliases:
        if own in group:
            names |= group
    return names | {it.rpartition("/")[2] for it in names if "://" in it and not it.endswith("/")}


def folded(scope: str) -> str:
    return scope.casefold()
