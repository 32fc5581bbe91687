"""Which provider is tried: a catalogue entry, a definition file or an issuer; and what can't be tried."""

from pathlib import Path

from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Integration
from providers.definition.parsing import parse_yaml_definition, read_definition_file
from providers.definition.registry import CATALOG, unknown_provider
from providers.definition.schema import ProviderSpec
from providers.definition.schema_request import ClientAuth
from providers.definition.templates import client_auth_of

FLOWS = (Flow.AUTHORIZATION_CODE, Flow.DEVICE_CODE, Flow.CLIENT_CREDENTIALS)
_CLIENT_AUTH = (ClientAuth.BASIC, ClientAuth.POST, ClientAuth.SECRET_JWT, ClientAuth.NONE)


def definition_to_try(name: str | None, file: Path | None, issuer: str | None) -> ProviderSpec:
    """The definition. Raises Failure PROVIDER_UNKNOWN with similar names, or INVALID_REQUEST."""
    if file is not None:
        try:
            return parse_yaml_definition(file.read_text(encoding="utf-8"), file.name)
        except OSError as error:
            raise _invalid("definition", f"{file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise _invalid("definition", f"{file} is not UTF-8") from None
    if name is None:
        if issuer is None:
            raise _invalid("name", "name a provider, or give --definition or --issuer")
        name = "generic"
    names = sorted(path.stem for path in CATALOG.glob("*.yaml"))
    if name not in names:
        raise unknown_provider(name, names)
    return read_definition_file(CATALOG / f"{name}.yaml")


def flow_to_try(spec: ProviderSpec, named: str | None) -> Flow:
    """The named flow, or the first of FLOWS that the definition has. Raises Failure INVALID_REQUEST."""
    offered = [flow for flow in FLOWS if flow.value in spec.auth_modes]
    if named is None and not offered:
        raise _invalid(
            "flow",
            f"{spec.name} has the flows {', '.join(spec.auth_modes)} alone, which a trial doesn't support",
        )
    flow = Flow(named) if named else offered[0]
    spec.require_usable(flow)
    return flow


def require_triable(spec: ProviderSpec, integration: Integration) -> None:
    """Raise Failure INVALID_REQUEST for a client that needs a key or a certificate."""
    method = client_auth_of(spec, integration)
    if method not in [known.value for known in _CLIENT_AUTH]:
        raise _invalid("client_auth", f"{spec.name} wants {method}, and a trial has only a client secret")
    if spec.client_secret_generator is not None:
        raise _invalid("client_secret_generator", f"{spec.name} wants a client secret that a key signs")
    if spec.dpop:
        raise _invalid("dpop", f"{spec.name} binds tokens to a key, which a trial doesn't have")


def _invalid(field: str, detail: str) -> Failure:
    return Failure(ErrorCode.INVALID_REQUEST, detail, field=field)
