"""Rows of another system's file, with the line each stands in, and the items that a source makes of them."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from evergrant.errors import BadRequest
from evergrant.grant_files import InvalidLine, ParsedLine, parse_json
from evergrant.grant_sources.items import GrantSource, RefusedRow, Row, SkippedRow

_MAX_LINE_BYTES = 16 * 2**20  # a page of users on one line
_MAX_DOCUMENT_BYTES = 256 * 2**20  # a document is read as a whole, lines are not
_MAX_HEADER_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class SourceRow:
    number: int
    end: int
    row: Row = field(repr=False)


@dataclass(frozen=True, slots=True)
class SkippedLine:
    """A row, or a part of one, without a grant."""

    end: int
    reason: str


def lines_of(
    rows: Iterator[SourceRow | InvalidLine], source: GrantSource
) -> Iterator[ParsedLine | InvalidLine | SkippedLine]:
    """The items that the source makes of each row, under the row's number."""
    for row in rows:
        if isinstance(row, InvalidLine):
            yield row
            continue
        try:
            made = source.items(row.row)
        except (SkippedRow, RefusedRow) as reason:
            made = [reason]
        for one in made:
            match one:
                case SkippedRow():
                    yield SkippedLine(row.end, one.reason)
                case RefusedRow():
                    yield InvalidLine(row.number, row.end, one.code, one.detail)
                case _:
                    yield ParsedLine(row.number, row.end, one)


def json_rows(source: BinaryIO, listed_as: str) -> Iterator[SourceRow | InvalidLine]:
    """Objects, one a line or in one document: an array, or an object with an array as `listed_as`.

    A line may hold a page of them in the same two ways.
    """
    number = end = 0
    while raw := source.readline(_MAX_LINE_BYTES + 1):
        number, end = number + 1, end + len(raw)
        text = raw.strip().removeprefix(b"\xef\xbb\xbf")
        if not text:
            continue
        if len(raw) > _MAX_LINE_BYTES:
            raise _unreadable(f"line {number} is longer than {_MAX_LINE_BYTES} bytes")
        value = parse_json(number, end, text)
        if isinstance(value, InvalidLine) and number == 1 and text[:1] in b"[{":
            whole = text + b"\n" + source.read(_MAX_DOCUMENT_BYTES)
            yield from _of_document(whole, listed_as)
            return
        yield from _listed(value, number, end, listed_as)


def _of_document(whole: bytes, listed_as: str) -> Iterator[SourceRow | InvalidLine]:
    """The rows of one document, counted from 1; of lines, the first of which is broken, when it is none."""
    if len(whole) > _MAX_DOCUMENT_BYTES:
        raise _unreadable("it is one large JSON document")
    value = parse_json(1, len(whole), whole)
    if not isinstance(value, InvalidLine):
        for number, row in enumerate(_listed(value, 1, len(whole), listed_as), 1):
            yield SourceRow(number, row.end, row.row) if isinstance(row, SourceRow) else row
        return
    first, _, rest = whole.partition(b"\n")
    yield InvalidLine(1, len(first), "not_json", "it is not valid JSON")
    for row in json_rows(io.BytesIO(b"\n" + rest), listed_as):  # the empty line keeps the numbers
        yield row


def _listed(value: object, number: int, end: int, listed_as: str) -> Iterator[SourceRow | InvalidLine]:
    if isinstance(value, InvalidLine):
        yield value
        return
    inner = cast(Row, value).get(listed_as) if isinstance(value, Mapping) else value
    for one in cast(list[object], inner if isinstance(inner, list) else [value]):
        if isinstance(one, Mapping):
            yield SourceRow(number, end, cast(Row, one))
        else:
            yield InvalidLine(number, end, "not_an_object", "it is JSON, but not an object")


def csv_rows(
    source: BinaryIO, table: Callable[[Sequence[str]], GrantSource]
) -> tuple[GrantSource, Iterator[SourceRow | InvalidLine]]:
    """The source that `table` makes of the header, and the rows below it.

    The header shows what stands between cells: a comma, a semicolon or a tab. Raises BadRequest.
    """
    first = source.readline(_MAX_HEADER_BYTES)
    try:
        header = first.decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError:
        raise _unreadable("its header is not UTF-8") from None
    between = max(",;\t", key=header.count)
    names: list[str] = next(csv.reader([header], delimiter=between), list[str]())
    return table(names), _csv_rows(source, len(first), names, between)


def _csv_rows(
    source: BinaryIO, end: int, names: Sequence[str], between: str
) -> Iterator[SourceRow | InvalidLine]:
    def lines() -> Iterator[str]:
        nonlocal end
        for raw in source:
            end += len(raw)
            yield raw.decode("utf-8", "surrogateescape")

    reader = csv.reader(lines(), delimiter=between)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield InvalidLine(reader.line_num + 1, end, "not_csv", "it is no line of CSV")
            continue
        number = reader.line_num + 1  # below the header
        if not cells:
            continue
        if len(cells) != len(names):
            why = f"it has {len(cells)} cells, and the header {len(names)}"
            yield InvalidLine(number, end, "wrong_shape", why)
        elif any("\udc80" <= letter <= "\udcff" for letter in "".join(cells)):
            yield InvalidLine(number, end, "not_utf8", "it is not UTF-8")
        else:
            yield SourceRow(number, end, dict(zip(names, cells, strict=True)))


def _unreadable(why: str) -> BadRequest:
    how = "Give JSON with one object on each line (jq -c '.[]' makes it), or CSV with a header, in UTF-8."
    return BadRequest(f"the file can't be read: {why}", code="file_unusable", repair=how)
