"""Whether a permit names a subject, and whether a caller is where it has to be."""

from functools import lru_cache

from evergrant_server.policy.networks import is_within, parse_address

WILDCARD = "*"


def names_subject(subjects: tuple[str, ...], subject: str | None) -> bool:
    """A subject that ends in `*` names every subject that begins with what is before it."""
    if WILDCARD in subjects:
        return True
    return subject is not None and (subject in subjects or subject.startswith(_beginnings(subjects)))


@lru_cache(4096)
def _beginnings(subjects: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(it[:-1] for it in subjects if it.endswith(WILDCARD))


def comes_from(sources: tuple[str, ...], address: str | None, *, otherwise: bool) -> bool:
    """Whether the address is in one of the networks; `otherwise` where it can't be told."""
    if address is None:
        return otherwise
    try:
        return is_within(parse_address(address), sources)
    except ValueError:
        return otherwise
