"""docs/telemetry.md explains every name that telemetry uses and no others; log lines hold no secret."""

import io
import json
import logging
import re
from pathlib import Path

import pytest

from evergrant_server.telemetry.logs import LogEvent, configure_logging, log_event
from evergrant_server.telemetry.traces import BadTelemetry, otlp_enabled

ROOT = Path(__file__).parents[3]
CODE = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder in ("evergrant_server", "activities", "providers", "workflows")
    for path in (ROOT / folder).rglob("*.py")
}


PAGE = (ROOT / "docs/telemetry.md").read_text(encoding="utf-8")
TELEMETRY = "evergrant_server/telemetry/"


def explained(heading: str) -> list[str]:
    """The first column of the table below this heading of the page."""
    section = re.split(r"^#+ ", PAGE.partition(f"# {heading}\n")[2], flags=re.MULTILINE)[0]
    return re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)


def test_every_event_is_explained_and_logged_somewhere() -> None:
    assert explained("Events") == [event.value for event in LogEvent]
    used = {name for text in CODE.values() for name in re.findall(r"Event\.([A-Z_]+)", text)}
    assert set(LogEvent.__members__) <= used


def test_every_log_call_names_an_event() -> None:
    free = re.compile(r"\blog\.(?:debug|info|warning|error)\(")
    assert [name for name, text in CODE.items() if free.search(text)] == []


def test_every_metric_and_attribute_is_explained_and_written_once() -> None:
    names = [*explained("Metrics"), *explained("Attributes")]
    used = re.compile(r'"((?:evergrant|http|server|error)\.(?!response\.start)[a-z_.]+)"')
    telemetry = [
        found for name, text in CODE.items() if name.startswith(TELEMETRY) for found in used.findall(text)
    ]
    assert sorted(telemetry) == sorted(names)
    for name, text in CODE.items():
        assert name.startswith(TELEMETRY) or not set(used.findall(text)) & set(names), name


def test_a_json_line_has_code_and_id_but_no_text_of_an_exception() -> None:
    out = io.StringIO()
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        configure_logging("DEBUG", "json", out)
        log_event(
            logging.getLogger("t"),
            logging.WARNING,
            LogEvent.OUTBOX_STUCK,
            code="store_unavailable",
            object="x",
        )
        try:
            raise ValueError("secret-in-a-message")
        except ValueError:
            logging.getLogger("t").exception("broke")
        configure_logging("DEBUG", "text", out)
        try:
            raise ValueError("secret-in-a-message")
        except ValueError:
            logging.getLogger("t").exception("broke again")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    first, second, *text = out.getvalue().splitlines()
    assert json.loads(first)["code"] == "store_unavailable"
    assert json.loads(first)["object"] == "x"
    assert json.loads(second)["exception"] == "ValueError"
    assert json.loads(second)["stack"]
    assert "ValueError" in "".join(text)
    assert "secret" not in out.getvalue()


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318/v1/metrics"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
    ],
)
def test_traces_are_off_unless_the_environment_configures_them(
    env: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert otlp_enabled("TRACES") is wanted


def test_an_unsupported_protocol_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(BadTelemetry, match="http/protobuf"):
        otlp_enabled("TRACES")
