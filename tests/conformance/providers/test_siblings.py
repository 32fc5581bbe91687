"""Entries of one server, or of one vendor, read errors alike: what one knows, the other knows."""

import re
from collections import defaultdict
from urllib.parse import urlsplit

from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from providers.definition.schema_errors import CODE_LISTS

REGISTRY = Registry.load()
FIELDS = ("error_rules", "status_field", "ok_values", *CODE_LISTS)
STATED = re.compile(r"^errors differ from ([a-z0-9-]+): .+")


def errors_of(spec: ProviderSpec) -> dict[str, object]:
    """What a definition says about errors; the order of a list's names means nothing."""
    told = {name: getattr(spec, name) for name in FIELDS}
    return told | {name: frozenset(told[name]) for name in CODE_LISTS}


def stated(spec: ProviderSpec) -> set[str]:
    """The siblings from which a definition says that it differs, with a reason."""
    return {match.group(1) for note in spec.notes if (match := STATED.match(note))}


def test_entries_of_one_token_host_have_the_same_errors_or_say_why_not() -> None:
    siblings: defaultdict[str, list[ProviderSpec]] = defaultdict(list)
    for spec in REGISTRY.all():
        host = urlsplit(spec.token_endpoint or "").hostname
        if host and "{" not in host:  # a placeholder is some customer's host
            siblings[host].append(spec)
    compared, divergent = 0, []
    for first, *others in (family for family in siblings.values() if len(family) > 1):
        for other in others:
            compared += 1
            if errors_of(first) != errors_of(other) and not (
                other.name in stated(first) or first.name in stated(other)
            ):
                divergent.append(f"{other.name} differs from {first.name}")
    assert divergent == []
    assert compared > 15


def test_an_extended_entry_is_named_by_its_siblings_alone() -> None:
    """Each entry that extends another one has all of its errors, and no copy of them."""
    extending = [spec for spec in REGISTRY.all() if spec.extends]
    assert {spec.extends for spec in extending} >= {"atlassian", "facebook", "google", "microsoft", "zoho"}
    for spec in extending:
        extended = REGISTRY.get(str(spec.extends))
        for name in CODE_LISTS:
            for code in getattr(extended, name):
                assert spec.list_of(code) is not None, f"{spec.name} lacks {code}"


def test_a_stated_difference_names_a_sibling_that_differs() -> None:
    for spec in REGISTRY.all():
        for name in stated(spec):
            assert errors_of(spec) != errors_of(REGISTRY.get(name)), f"{spec.name} and {name} are alike"
