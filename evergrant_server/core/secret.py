"""A value that cannot be shown: the type every token, code, verifier and key travels in."""

import hmac
import json
from typing import Any, NoReturn, Self, cast

from pydantic import ConfigDict, GetCoreSchemaHandler
from pydantic_core import core_schema, to_jsonable_python

from evergrant_server.core.model import CheckedModel


class SecretLeak(TypeError):
    """Something tried to print, pickle or serialise a secret."""


class Secret:
    """Holds a string that `repr`, `str`, `format`, pickle and JSON never reveal.

    `reveal()` is the one way out, so that a reader can search for every place that uses it.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself. The caller must hand it to a provider, a subject or a sealer only."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        """Whether the values are the same, in a time that doesn't tell how much of them is."""
        return isinstance(other, Secret) and hmac.compare_digest(_bytes(other), _bytes(self))

    __hash__ = None  # type: ignore[assignment]  # a hash in a log would still be a fingerprint

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> NoReturn:
        raise SecretLeak("a secret is never pickled or copied into a message")

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[Any], handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        def refuse(value: "Secret") -> NoReturn:
            raise SecretLeak("a secret is never serialised")

        return core_schema.no_info_after_validator_function(
            lambda value: value if isinstance(value, cls) else cls(value),
            core_schema.union_schema([core_schema.is_instance_schema(cls), core_schema.str_schema()]),
            serialization=core_schema.plain_serializer_function_ser_schema(refuse),
        )


def _bytes(secret: Secret) -> bytes:
    return secret.reveal().encode("utf-8", "surrogatepass")


class SealableModel(CheckedModel):
    """A value with secrets that a sealer keeps as one text.

    Never a message: its secrets refuse to be serialised, except into another secret.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    def as_secret(self) -> Secret:
        return Secret(json.dumps(_revealed(self)))

    @classmethod
    def from_secret(cls, text: Secret) -> Self:
        return cls.model_validate(json.loads(text.reveal()))


def _revealed(value: object) -> Any:
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, SealableModel):
        return {name: _revealed(member) for name, member in value}
    if isinstance(value, dict):
        return {key: _revealed(member) for key, member in cast("dict[str, object]", value).items()}
    return to_jsonable_python(value)
