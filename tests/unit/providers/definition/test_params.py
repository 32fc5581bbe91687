"""A parameter of a provider's URLs that can't be meant: what to write in its place."""

import pytest

from evergrant_server.core.errors import Failure
from providers.definition.templates import definition_endpoints
from tests.unit.providers.samples import spec_like

SPEC = spec_like(
    token_endpoint="https://{shop}.acme.example/token",
    template_params={"shop": {"pattern": "^[a-z0-9-]{1,63}$", "description": "The shop's subdomain"}},
)


@pytest.mark.parametrize(
    ("params", "said", "repair"),
    [
        (
            {"shop": "https://mine.acme.example/"},
            "without https://",
            "--param shop=VALUE: The shop's subdomain",
        ),
        ({"shop": "mine.acme.example"}, "the part before the first dot alone", "--param shop=VALUE"),
        ({"shop": "MINE"}, "must match", "--param shop=VALUE"),
        ({}, "shop is missing", "--param shop=VALUE"),
        ({"domain": "mine"}, "domain is not a parameter of acme, which has shop", "Leave it out."),
    ],
)
def test_a_parameter_is_told_its_form(params: dict[str, str], said: str, repair: str):
    with pytest.raises(Failure) as refused:
        definition_endpoints(SPEC, params)
    assert said in refused.value.detail
    assert repair in refused.value.repair
