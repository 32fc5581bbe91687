"""`providers explain`: what a reply is read as, and a misread one as a vector; `providers try --vector` reads
such a vector again."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from evergrant_server import __version__
from evergrant_server.cli.providers import TrialArguments
from evergrant_server.core.errors import ErrorCode, Failure
from providers.definition.parsing import InvalidYaml, parse_yaml
from providers.definition.registry import Registry
from providers.definition.schema_errors import RequestKind
from providers.tools.explanation import explain as explained
from providers.tools.explanation import reply_from
from providers.tools.trial.misreadings import RefusalKind, observed_refusals, refusal_of, with_refusal
from providers.tools.trial.observation import Observation
from providers.tools.trial.target import definition_to_try

_HEAD = """\
# seen by a user of Evergrant {version}
# What looks like a secret or a name was replaced. Read every line before you give it away.
# docs/guide/adding-a-provider.md says how to contribute it.
"""


@dataclass(frozen=True)
class Seen:
    """A provider's reply that a user has seen."""

    provider: str
    status: int
    headers: Sequence[str]
    body: bytes
    at: RequestKind


def body_in(file: Path | None) -> bytes:
    """The body in a file, of the standard input for `-`. Raises Failure INVALID_REQUEST."""
    if file is None or str(file) == "-":
        return b"" if file is None else sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise Failure(ErrorCode.INVALID_REQUEST, f"{file}: {error.strerror}", field="body") from None


def explain(seen: Seen, output: Literal["text", "json"]) -> None:
    """Print what the reply is read as. Raises Failure PROVIDER_UNKNOWN, INVALID_REQUEST."""
    registry = Registry.load()
    told = explained(registry, seen.provider, seen.at, seen.status, seen.headers, seen.body)
    sys.stdout.write(json.dumps(asdict(told), indent=2) + "\n" if output == "json" else str(told))


def write(seen: Seen, should_be: RefusalKind, source: str, file: Path) -> None:
    """Add the reply, as what it should be, to the vector in this file. Raises Failure INVALID_REQUEST."""
    spec = Registry.load().get(seen.provider)
    reply = reply_from(seen.status, seen.headers, seen.body)
    refusal = refusal_of(spec, reply, seen.at, should_be, source)
    vector = with_refusal(spec, _read(file) if file.exists() else {}, refusal)
    text = yaml.safe_dump(vector, sort_keys=False, allow_unicode=True, width=108)
    try:
        file.write_text(_HEAD.format(version=__version__) + text, encoding="utf-8")
    except OSError as error:
        raise _invalid(f"{file}: {error.strerror}") from None
    print(f"The vector is in {file}. Read every line of it before you give it away.", file=sys.stderr)


def compare(name: str | None, arguments: TrialArguments, file: Path) -> bool:
    """Print what the definition reads each refusal of the vector as; True if it agrees with all.

    Raises Failure PROVIDER_UNKNOWN, INVALID_REQUEST.
    """
    spec = definition_to_try(name, arguments.definition, arguments.issuer)
    observations = list(observed_refusals(spec, _read(file)))
    if arguments.output == "json":
        print(json.dumps([*map(asdict, observations)], indent=2))
    else:
        for seen in observations:
            print(_as_text(seen))
    return not any(seen.differs for seen in observations)


def _as_text(seen: Observation) -> str:
    parts = {"saw": seen.saw, "definition": seen.definition, "differs": seen.differs}
    lines = [f"  {name:<10}  {'; '.join(texts) or 'nothing'}" for name, texts in parts.items()]
    return "\n".join([seen.step, *lines])


def _read(file: Path) -> Mapping[str, Any]:
    try:
        vector = parse_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _invalid(f"{file}: {error.strerror}") from None
    except (InvalidYaml, UnicodeDecodeError) as error:
        raise _invalid(f"{file}: {str(error)[:300]}") from None
    if not isinstance(vector, dict):
        raise _invalid(f"{file} is not a mapping of fields")
    return vector


def _invalid(detail: str) -> Failure:
    return Failure(ErrorCode.INVALID_REQUEST, detail, field="vector")
