"""A definition without what no flow carries out yet, so that the rest of its exchange is tried."""

from typing import Any

from evergrant_server.core.errors import Failure
from providers.definition.schema import ProviderSpec


def lifted(spec: ProviderSpec) -> ProviderSpec:
    """The definition with every field that `require_usable` refuses put back to its default."""
    while (field := _refused_for(spec)) not in (None, "auth_modes"):
        less = _without(spec, str(field))
        if less == spec:
            raise AssertionError(f"{spec.name}: {field} is refused, and nothing to lift")
        spec = less
    return spec


def _refused_for(spec: ProviderSpec) -> str | None:
    try:
        spec.require_usable()
    except Failure as failure:
        return str(failure.context["field"])
    return None


def _without(spec: ProviderSpec, field: str) -> ProviderSpec:
    name, _, inner = field.partition(".")
    if name == "response":
        less = spec.response.model_copy(update={inner: type(spec.response).model_fields[inner].default})
        return spec.model_copy(update={"response": less})
    return spec.model_copy(update={name: _default(name)})


def _default(name: str) -> Any:
    return ProviderSpec.model_fields[name].get_default(call_default_factory=True)
