"""The base of every model: what a copy with changes checks."""

from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict


class CheckedModel(BaseModel):
    """A model whose copies are checked: `model.__replace__(name=value)` is the only way to change one.

    pyright checks the names and the types of the changes, the model their values. Raises TypeError for a
    field that the model doesn't have, and pydantic's ValidationError for a value that it refuses.
    """

    if not TYPE_CHECKING:  # a type checker derives the signature from the fields

        def __replace__(self, **changes: Any) -> Self:
            fields = type(self).model_fields
            if unknown := changes.keys() - fields.keys():
                raise TypeError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
            values = {name: self.__dict__[name] for name in fields} | changes
            copy = self.__pydantic_validator__.validate_python(values, by_alias=False, by_name=True)
            object.__setattr__(copy, "__pydantic_fields_set__", self.model_fields_set | changes.keys())
            return copy


class FrozenModel(CheckedModel):
    model_config = ConfigDict(frozen=True)
