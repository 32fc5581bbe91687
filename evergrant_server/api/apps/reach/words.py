"""A permit in one plain sentence. Pure."""

from collections.abc import Sequence

from evergrant_server.core.access import Action, Effect, EnforcementMode, Permit

_EVERY = "*"
_MOST = 8  # of a list that are named
_DOES = {
    Action.TOKEN: "get access tokens",
    Action.PROXY: "send requests to the API",
    Action.CONNECT: "ask for consents",
    Action.ADMIN: "change the configuration",
    Action.AUDIT: "read the configuration and the audit log",
    Action.EXPORT: "export refresh tokens",
}


def words_of(permit: Permit) -> str:
    """What the permit lets its app do: `May send GET requests to /user of github, for alice.`"""
    begin = "May" if permit.effect is Effect.ALLOW else "May not"
    if permit.mode is EnforcementMode.OBSERVE:
        begin = "Would not be allowed to"
    does = _listed([_does(permit, action) for action in permit.actions], "and")
    return f"{begin} {does}{_where(permit)}{_limits(permit)}."


def _does(permit: Permit, action: Action) -> str:
    if action is not Action.PROXY:
        return _DOES[action]
    if permit.tools is not None:
        return f"call the tools {_listed(permit.tools, 'and')}"
    methods = "" if permit.methods is None else f"{_listed(permit.methods, 'and')} "
    return f"send {methods}requests to {'the API' if permit.paths is None else _listed(permit.paths, 'and')}"


def _where(permit: Permit) -> str:
    every = "every" if permit.effect is Effect.ALLOW else "any"
    of = f" of {every} integration" if permit.integration == _EVERY else f" of {permit.integration}"
    if permit.provider != _EVERY:
        of += f" with the provider {permit.provider}"
    if permit.connections is not None:
        count = len(permit.connections)
        of += f", on {count} named connection{'s' if count != 1 else ''} alone"
    if _EVERY in permit.subjects:
        return f"{of}, for {every} subject"
    names = [
        f"those that begin with {subject[:-1]}" if subject.endswith(_EVERY) else subject
        for subject in permit.subjects
    ]
    return f"{of}, for {_listed(names, 'and')}"


def _limits(permit: Permit) -> str:
    limits: list[str] = []
    if permit.scope_ceiling is not None:
        limits.append(f"with no more than {_listed(permit.scope_ceiling, 'and') or 'no scope at all'}")
    if permit.exact_scopes:
        limits.append("with a token of exactly the scopes it asks for")
    if permit.scopes is not None:
        limits.append(f"if it is about {_listed(permit.scopes, 'or')}")
    if permit.sources is not None:
        limits.append(f"from {_listed(permit.sources, 'or')}")
    if permit.call_approval:
        limits.append("once a person has approved that very call")
    return "".join(f", {limit}" for limit in limits)


def _listed(names: Sequence[str], last: str) -> str:
    """`a, b and c`; of many the first, and how many more."""
    shown = list(names[:_MOST])
    if len(names) > _MOST:
        shown.append(f"{len(names) - _MOST} more")
    return f" {last} ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
