"""The client's generated modules: they are those of the server's OpenAPI document, and leave nothing out."""

import re
from typing import Any

import pytest
from evergrant import State
from evergrant.api.commands import ApiMethods
from evergrant.api.methods import Lists, Sends

from clients import generate
from evergrant_server.api.app import openapi_document

# texts whose names sound like a secret's and that are none
HARMLESS = {
    "DeviceView.user_code",  # for the terminal that shows it
    "ExportView.key",  # a thumbprint
    "AttentionView.code",  # an error's, as the next
    "FailureCauseView.code",
    "ImportRowView.code",
    "FailedConsentView.code",
    "Obstacle.code",
}
SOUNDS_SECRET = re.compile(r"(^|_)(secret|token|key|password|connect_url|code)$")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi_document()


def test_the_generated_modules_are_those_of_the_document(document: dict[str, Any]):
    """After a change of the API: `make docs`."""
    for name, text in generate.render(document).items():
        assert (generate.FOLDER / name).read_text(encoding="utf-8") == text, name
    committed = generate.DOCUMENT.read_text(encoding="utf-8") == generate.written(document)
    assert committed, "clients/openapi.json, of which the TypeScript client is built, is another document"


def test_every_operation_is_a_method_or_says_why_not(document: dict[str, Any]):
    names = {name for name, *_ in generate.operations(document, by_hand=frozenset())}
    assert names >= generate.BY_HAND | set(generate.OPERATIONS)
    methods = {name for name in dir(ApiMethods) if isinstance(vars_of(ApiMethods).get(name), Sends | Lists)}
    generated = {generate.client_name(name) for name in names - generate.BY_HAND}
    assert generated <= methods


def vars_of(owner: type) -> dict[str, object]:
    return {name: value for each in reversed(owner.mro()) for name, value in vars(each).items()}


def test_the_tables_of_the_generator_name_what_is_there(document: dict[str, Any]):
    schemas = document["components"]["schemas"]
    named = {*generate.MODELS, *generate.CREATED, *generate.CREATED.values(), *generate.ALSO, *generate.BASES}
    assert named <= set(schemas)
    bodies = {name for schema in schemas.values() for name in schema.get("properties", ())}
    assert bodies >= generate.SECONDS
    assert set(schemas["LifecycleState"]["enum"]) == set(State)


def test_what_sounds_like_a_secret_is_hidden_or_known_to_be_none(document: dict[str, Any]):
    schemas = generate.Schemas(document)
    for operation in generate.operations(document):
        list(generate.render_operation(schemas, *operation))
    for name in generate.ALSO:
        schemas.model(name)
    suspects = {
        f"{schema}.{member}"
        for schema in schemas.asked
        for member, kind, *_ in schemas.fields(schema)
        if kind.startswith("str") and SOUNDS_SECRET.search(member)
    }
    assert suspects - HARMLESS == generate.SECRETS
