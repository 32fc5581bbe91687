"""Auth0: users with their identities, as the Management API gives them (`GET /api/v2/users`).

    python -m examples.migrations.auth0 users.jsonl --integration google-oauth2=google > grants.jsonl

An identity has `connection`, `provider`, `user_id`, `access_token` and, when the connection asked
for offline access, `refresh_token`. The tokens are there only with the scope
`read:user_idp_tokens`, and only for the users of social and enterprise connections. `expires_in`
counts from a login that the export doesn't date well enough, so the expiry is unknown.
"""

import sys
from collections.abc import Mapping

from examples.migrations.lines import Item, Row, SkippedRow, convert, item, scopes
from examples.migrations.options import mapping, read_jsonl


def auth0(row: Row, integrations: Mapping[str, str]) -> list[Item]:
    """One item for each identity that can be refreshed. The subject is Auth0's `user_id`."""
    found: list[Item] = []
    for identity in row.get("identities") or []:
        if not identity.get("access_token") or not identity.get("refresh_token"):
            continue  # without an expiry and a refresh token it can't be leased
        name = identity["connection"]
        found.append(
            item(
                integration=integrations.get(name, name),
                subject=row["user_id"],
                access_token=identity["access_token"],
                refresh_token=identity["refresh_token"],
                expires="unknown",
                scopes=scopes(identity.get("scope")),
                metadata={"auth0_identity": f"{identity['provider']}|{identity['user_id']}"},
            )
        )
    if not found:
        raise SkippedRow("no identity has a refresh token")
    return found


if __name__ == "__main__":
    path, names = mapping(sys.argv[1:])
    for line in convert(read_jsonl(path), lambda row: auth0(row, names)):
        print(line)
