"""A table of your own, as CSV with a header.

    psql -c "\\copy (select … from oauth_tokens) to tokens.csv csv header"
    python -m examples.migrations.table tokens.csv --integration hubspot=crm > grants.jsonl

Columns: `provider`, `user_id`, `access_token`, and if you have them `refresh_token`, `expires_at`
(ISO 8601 or epoch), `scope`, `token_type`, `account` (becomes the label). Rename yours in the
query, or change the function below.
"""

import csv
import sys
from collections.abc import Iterator, Mapping

from examples.migrations.lines import Item, Row, SkippedRow, convert, expiry, item, scopes
from examples.migrations.options import mapping


def table(row: Row, integrations: Mapping[str, str]) -> Item:
    if not row["access_token"]:
        raise SkippedRow("no access token")
    ends = expiry(row.get("expires_at"))
    if "expires" in ends and not row.get("refresh_token"):
        raise SkippedRow("no expiry and no refresh token")
    name = row["provider"]
    return item(
        integration=integrations.get(name, name),
        subject=str(row["user_id"]),
        label=row.get("account"),
        access_token=row["access_token"],
        refresh_token=row.get("refresh_token"),
        token_type=row.get("token_type"),
        scopes=scopes(row.get("scope")),
        **ends,
    )


def read_csv(path: str) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


if __name__ == "__main__":
    path, names = mapping(sys.argv[1:])
    for line in convert(read_csv(path), lambda row: table(row, names)):
        print(line)
