"""Pinned hosts: where a worker has written that secrets may be sent. Pure."""

from typing import NamedTuple


class PinnedHosts(NamedTuple):
    """The hosts at which a grant was made, and those of its integration; None: none is written yet.

    An integration's are those of its definition when the first grant was made, and those that an operator has
    accepted since. `providers.requests.hosts` says how a host is written.
    """

    grant: tuple[str, ...] | None = None
    integration: tuple[str, ...] | None = None


NOTHING_PINNED = PinnedHosts()


def hosts_text(hosts: tuple[str, ...] | None) -> str:
    """The column of these hosts, which their authenticator covers."""
    return " ".join(sorted(set(hosts or ())))


def hosts_in(text: str | None) -> tuple[str, ...]:
    """The hosts of a column. A row accepted without them has none: nothing is sent before they are pinned."""
    return tuple((text or "").split())
