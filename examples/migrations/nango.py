"""Nango: rows of its database's `_nango_connections`, decrypted, one JSON object a line.

    python -m examples.migrations.nango rows.jsonl --integration hubspot-prod=crm > grants.jsonl

Credentials in Nango's database are encrypted when `NANGO_ENCRYPTION_KEY` is set; the recipe in
docs/guide/moving-in.md says how to get them out in clear. Read: `provider_config_key`,
`connection_id`, `credentials` (an object, or text of one) with `type` `OAUTH2`, `access_token`,
`refresh_token`, `expires_at` and `raw`, and `deleted_at`.
"""

import json
import sys
from collections.abc import Mapping

from examples.migrations.lines import Item, Row, SkippedRow, convert, expiry, item, scopes
from examples.migrations.options import mapping, read_jsonl


def nango(row: Row, integrations: Mapping[str, str]) -> Item:
    """One connection. The integration keeps its name unless `integrations` gives another."""
    if row.get("deleted") or row.get("deleted_at"):
        raise SkippedRow("deleted")
    credentials = row["credentials"]
    credentials = json.loads(credentials) if isinstance(credentials, str) else credentials
    if credentials.get("type") != "OAUTH2":
        raise SkippedRow("it isn't OAuth 2")
    if "access_token" not in credentials:
        raise SkippedRow("its credentials are encrypted or missing")
    raw = credentials.get("raw") or {}
    name = row["provider_config_key"]
    return item(
        integration=integrations.get(name, name),
        subject=str(row["connection_id"]),
        access_token=credentials["access_token"],
        refresh_token=credentials.get("refresh_token") or raw.get("refresh_token"),
        scopes=scopes(raw.get("scope")),
        **expiry(credentials.get("expires_at")),
    )


if __name__ == "__main__":
    path, names = mapping(sys.argv[1:])
    for line in convert(read_jsonl(path), lambda row: nango(row, names)):
        print(line)
