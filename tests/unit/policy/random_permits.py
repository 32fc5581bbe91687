"""Random permits and requests that often fit each other, from a seed."""

from datetime import timedelta
from random import Random
from typing import Any

from evergrant_server.core.access import Action, Effect, EnforcementMode, Permit
from evergrant_server.core.connections.grant import UNKNOWN_SCOPE
from evergrant_server.policy import PermitQuestion, ProxiedRequest, Target
from tests.fakes.databases import NOW
from tests.unit.policy.test_policy import permit

SCOPES = ("read", "write", "admin")
CONNECTIONS = tuple(f"con_{digit * 22}" for digit in "012")
SOURCES = ("10.1.0.0/16", "10.0.0.0/8", "10.1.2.3/32", "2001:db8::/32", "0.0.0.0/0", "::/0")
ADDRESSES = (None, "10.1.2.3", "10.2.0.1", "::ffff:10.1.2.3", "192.0.2.1", "2001:db8::1", "no address")
METHODS = ("GET", "POST")
PATTERNS = ("/", "/a", "/a/*", "/a/**", "/*/b", "/**", "/A/b", "/*", "/a/b.json", "/a('b')", "/*/*/*")
TOOLS = ("safe", "se*", "*", "Safe", "\uff33afe")
CALLED = (None, "", "safe", "SAFE", " safe ", "\uff53afe", "search", "danger")
PATHS = (
    *("/", "/a", "/a/", "/a/b", "/A/b", "/a;v=1/b", "/a/b/c", "/x/b", "/b", "/a%2Fb", "/a%2Fb/c", "/a/b%2Fc"),
    *(
        "/a/b.json",
        "/a/b.xml",
        "/a.json",
        "/a('b')",
        "/a('b').json",
        "/a/b.",
        "/a%20/b",
        "/%61/b",
        "/a%3Bx/b",
    ),
)
ENDS = (NOW - timedelta(hours=1), NOW, NOW + timedelta(hours=1))


def _some(random: Random, values: tuple[Any, ...], most: int = 2) -> tuple[Any, ...]:
    return tuple(random.sample(values, random.randint(1, most)))


def _maybe(random: Random, value: Any, share: float = 0.15) -> Any:
    return value if random.random() < share else None


def random_permit(random: Random, name: str) -> Permit:
    effect = random.choice((Effect.ALLOW, Effect.ALLOW, Effect.DENY))
    fields: dict[str, Any] = {
        "effect": effect,
        "provider": random.choice(("*", "*", "*", "gitlab", "slack")),
        "connections": _maybe(random, _some(random, CONNECTIONS)),
        "sources": _maybe(random, _some(random, SOURCES)),
        "expires_at": _maybe(random, random.choice(ENDS)),
        "methods": _maybe(random, _some(random, METHODS)),
        "paths": _maybe(random, _some(random, PATTERNS), 0.3),
        "tools": _maybe(random, _some(random, TOOLS), 0.2),
    }
    if effect is Effect.DENY:
        fields["mode"] = random.choice(tuple(EnforcementMode))
        fields["scopes"] = _maybe(random, _some(random, SCOPES), 0.5)
    else:
        fields["ceiling"] = random.choice((None, None, (), _some(random, SCOPES, 3)))
        fields["exact_scopes"] = random.random() < 0.2
    return permit(
        name,
        random.choice(("*", "*", "crm", "erp")),
        _some(random, ("*", "user-1", "user-2", "user-10", "user-*", "u*"), 4),
        actions=_some(random, tuple(Action), 5),
        **fields,
    )


def random_permits(random: Random) -> list[Permit]:
    return [random_permit(random, name) for name in random.sample("abcdef", random.randint(0, 6))]


def random_question(random: Random) -> PermitQuestion:
    target = random.choice(
        (
            Target(),
            Target("crm", "gitlab"),
            Target("crm", "gitlab", random.choice(("user-1", "user-10", "*", "other"))),
            Target("erp", "slack", "user-1", random.choice(CONNECTIONS)),
            Target("crm", "gitlab", "user-2", random.choice(CONNECTIONS)),
        )
    )
    scopes = tuple(random.sample((*SCOPES, "Read"), random.randint(0, 3)))
    scopes += (UNKNOWN_SCOPE,) if random.random() < 0.05 else ()
    excess = tuple(random.sample(scopes, random.randint(0, len(scopes))))
    address = random.choice(ADDRESSES)
    asked = (random.choice(METHODS), random.choice(PATHS), random.choice(CALLED))
    overrides = ("the query's _method",) if random.random() < 0.1 else ()
    proxied = ProxiedRequest(*asked, overrides) if random.random() < 0.7 else None
    return PermitQuestion(target, random.choice(tuple(Action)), NOW, address, scopes, excess, proxied)
