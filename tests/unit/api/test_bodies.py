"""Bodies take JSON's own types: the OpenAPI document says number, and means it."""

from typing import Any

import pytest
from pydantic import ValidationError

from evergrant_server.api.apps.routes import AppBody
from evergrant_server.api.http.models import Body
from evergrant_server.api.integrations.definitions import DefinitionBody
from evergrant_server.api.leases.models import RefreshBody, TokenBody


@pytest.mark.parametrize(
    ("body", "given"),
    [
        (TokenBody, {"min_ttl": "60"}),
        (TokenBody, {"min_ttl": True}),
        (RefreshBody, {"generation": True}),
        (RefreshBody, {"generation": "1"}),
        (AppBody, {"disabled": "true"}),
        (AppBody, {"disabled": 1}),
        (DefinitionBody, {"definition": {}, "rollout": {"enough": True}}),
    ],
)
def test_neither_text_nor_a_boolean_is_a_number(body: type[Body], given: dict[str, Any]):
    with pytest.raises(ValidationError):
        body.model_validate(given)


def test_whole_numbers_and_null_are_what_they_were():
    assert TokenBody.model_validate({"min_ttl": 60}).min_ttl == 60
    assert RefreshBody.model_validate({"generation": None}).generation is None
