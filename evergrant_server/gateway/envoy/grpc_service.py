"""`envoy.service.auth.v3.Authorization/Check`: Envoy's gRPC service for external authorization.

Unlike over HTTP, all headers of the app's request arrive, a route can name the connection by
`context_extensions`, and a refusal keeps its status, 503 as well.

The messages have the field numbers of Envoy's external_auth.proto, attribute_context.proto, base.proto and
http_status.proto (v3). Protobuf skips fields that aren't here, and the names of messages never travel. They
stand here because the packages that have them overwrite files of other packages, or take a second to import
(ADR 0058).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from starlette.requests import Request

from evergrant_server.core.errors import Failure
from evergrant_server.gateway.envoy.check import CONNECTION, KEY, AllowedCall, AskedCall, EnvoyCheck
from evergrant_server.gateway.parts import ERROR_HEADER, GatewayParts, note_refusal, unexpected
from evergrant_server.gateway.server import MOST_HEAD
from evergrant_server.problems import problem_response
from evergrant_server.telemetry.traces import begin_trace

_PACKAGE = "evergrant.envoy"
_KINDS = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "bool": FieldDescriptorProto.TYPE_BOOL,
}
_Fields = dict[int, tuple[str, str]]
# number: name and type; `*` stands for repeated, `map` for one from string to string
_MESSAGES: dict[str, _Fields] = {
    "CheckRequest": {1: ("attributes", "AttributeContext")},
    "AttributeContext": {4: ("request", "Request"), 10: ("context_extensions", "map")},
    "Request": {2: ("http", "HttpRequest")},
    "HttpRequest": {
        2: ("method", "string"),
        3: ("headers", "map"),
        4: ("path", "string"),  # with the query
        5: ("host", "string"),
    },
    "CheckResponse": {
        1: ("status", "Status"),
        2: ("denied_response", "DeniedHttpResponse"),
        3: ("ok_response", "OkHttpResponse"),
    },
    "Status": {1: ("code", "int32")},  # google.rpc.Status
    "DeniedHttpResponse": {
        1: ("status", "HttpStatus"),
        2: ("headers", "*HeaderValueOption"),
        3: ("body", "string"),
    },
    "OkHttpResponse": {2: ("headers", "*HeaderValueOption"), 5: ("headers_to_remove", "*string")},
    "HttpStatus": {1: ("code", "int32")},
    "HeaderValueOption": {1: ("header", "HeaderValue"), 2: ("append", "BoolValue")},
    "HeaderValue": {1: ("key", "string"), 2: ("value", "string")},
    "BoolValue": {1: ("value", "bool")},  # google.protobuf.BoolValue
}
_SERVICE = "envoy.service.auth.v3.Authorization"
_MOST_MESSAGE = 4 * MOST_HEAD
_PERMISSION_DENIED = 7  # google.rpc.Code: anything but 0 refuses


def _pool() -> DescriptorPool:
    file = FileDescriptorProto(name="evergrant_envoy.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in fields.items():
            _add_field(message, number, field, kind)
    pool = DescriptorPool()
    pool.Add(file)
    return pool


def _add_field(message: DescriptorProto, number: int, field: str, kind: str) -> None:
    repeated = kind.startswith("*") or kind == "map"
    label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
    made = message.field.add(name=field, number=number, label=label)
    if kind == "map":
        entry = message.nested_type.add(name=f"{field.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, 1, "key", "string")
        _add_field(entry, 2, "value", "string")
        made.type_name = f".{_PACKAGE}.{message.name}.{entry.name}"
    elif kind.lstrip("*") in _KINDS:
        made.type = _KINDS[kind.lstrip("*")]
    else:
        made.type_name = f".{_PACKAGE}.{kind.lstrip('*')}"


_ALL = _pool()
CheckRequest: Any = GetMessageClass(_ALL.FindMessageTypeByName(f"{_PACKAGE}.CheckRequest"))
CheckResponse: Any = GetMessageClass(_ALL.FindMessageTypeByName(f"{_PACKAGE}.CheckResponse"))


class EnvoyGrpcService:
    """Answers Envoy's questions over gRPC."""

    def __init__(self, parts: GatewayParts) -> None:
        self._check = EnvoyCheck(parts)
        self._public_url = parts.api.settings.public_url

    async def check(self, sent: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        http, extensions = sent.attributes.request.http, sent.attributes.context_extensions
        headers = [(name.lower().encode(), value.encode()) for name, value in http.headers.items()]
        scope = {"type": "http", "method": http.method, "path": "", "headers": headers}
        scope["client"] = _address(context.peer())
        trace = begin_trace(scope)
        key = dict(context.invocation_metadata() or ()).get(KEY, "")
        asked = AskedCall(
            key=key if isinstance(key, str) else "",
            connection=extensions.get(CONNECTION) or http.headers.get(CONNECTION, ""),
            method=http.method,
            host=http.host,
            target=http.path.encode(),
            headers=headers,
            empty=http.headers.get("content-length") == "0",
        )
        try:
            return _allowed(await self._check.decide(Request(scope), asked))
        except Failure as failure:
            return self._denied(failure)
        except Exception:
            return self._denied(unexpected(trace.request_id))

    def _denied(self, failure: Failure) -> Any:
        note_refusal(failure)
        answer, response = problem_response(failure, self._public_url), CheckResponse()
        answer.headers[ERROR_HEADER] = failure.code.value
        response.status.code = _PERMISSION_DENIED
        denied = response.denied_response
        denied.status.code = answer.status_code
        denied.body = bytes(answer.body).decode()
        for name, value in answer.headers.items():
            if name != "content-length":
                denied.headers.add(header={"key": name, "value": value}, append={"value": False})
        return response


def _allowed(call: AllowedCall) -> Any:
    response = CheckResponse()
    response.status.code = 0
    for name, value in call.headers:
        header = {"key": name.decode().lower(), "value": value.decode()}
        response.ok_response.headers.add(header=header, append={"value": False})
    response.ok_response.headers_to_remove.extend(call.removed)
    return response


def _address(peer: str) -> tuple[str, int] | None:
    """Envoy's address, of gRPC's `ipv4:127.0.0.1:41234` or `ipv6:%5B::1%5D:41234`."""
    family, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    return (host.strip("[]"), int(port)) if family in ("ipv4", "ipv6") else None


@asynccontextmanager
async def envoy_grpc(parts: GatewayParts, address: str, *, drain_s: float) -> AsyncIterator[int]:
    """Serve until the block ends; the port."""
    handler = grpc.unary_unary_rpc_method_handler(
        EnvoyGrpcService(parts).check,
        request_deserializer=CheckRequest.FromString,
        response_serializer=CheckResponse.SerializeToString,
    )
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", _MOST_MESSAGE)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Check": handler}),))
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(drain_s)
