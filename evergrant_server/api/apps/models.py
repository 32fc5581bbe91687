"""Request and response bodies of `/v1/apps`."""

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, Field

from evergrant_server.api.http.models import Body, ReturnTo, Scopes, View, _printable, _slug
from evergrant_server.core.access import Action


class AppBody(Body):
    disabled: bool = False
    return_to: Annotated[tuple[ReturnTo, ...], Field(max_length=50)] = ()


class PermitBody(Body):
    """`integration` is a name or `*`; `subjects` are exact names, or `*` for all."""

    integration: Annotated[str, AfterValidator(lambda it: it if it == "*" else _slug(it))]
    subjects: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_printable)], ...],
        Field(min_length=1, max_length=1000),
    ] = ("*",)
    scope_ceiling: Scopes | None = None
    actions: Annotated[tuple[Action, ...], Field(min_length=1)]


class AppView(View):
    id: str
    name: str
    disabled: bool
    return_to: tuple[str, ...]
    created_at: datetime
    revision: int


class KeyView(View):
    id: str
    created_at: datetime
    revoked_at: datetime | None


class NewKeyView(KeyView):
    """The only response that contains an API key."""

    key: str


class PermitView(View):
    id: str
    name: str
    integration: str
    subjects: tuple[str, ...]
    scope_ceiling: tuple[str, ...] | None
    actions: tuple[Action, ...]
    created_at: datetime
    revision: int
