"""The messages of `envoy.service.auth.v3.Authorization`, as far as the gateway reads and writes them.

By the field numbers of Envoy's external_auth.proto, attribute_context.proto, base.proto and http_status.proto
(v3). Protobuf skips fields that aren't here, and the names of messages never travel. They stand here because
the packages that have them overwrite files of other packages, or take a second to import (ADR 0058).
"""

from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

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
