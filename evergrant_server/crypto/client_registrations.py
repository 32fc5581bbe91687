"""Client ids that carry what a client has registered: `cli_<id>.<sealed>` (RFC 7591 appendix A.5.2).

So a registration that no person has let in needs no row. The seal proves that Evergrant gave the id out, and
its nonce makes each id one that was given out once.
"""

import base64
import binascii
import json
import re
import zlib

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import OAuthClientId, Tenant
from evergrant_server.core.oauth.clients import ClientKind, GatewayClient
from evergrant_server.crypto.envelope import AssociatedData, SealingKey, open_sealed, seal
from evergrant_server.crypto.keyring import KeyRing

LONGEST_CLIENT_ID = 4000  # it stands in the address of the authorization endpoint
_SHAPE = re.compile(r"(cli_[0-9a-z]{22})\.([A-Za-z0-9_-]+)\Z")
_NOT_CARRIED = {"tenant", "id", "client_id", "kind", "revision"}


def client_id_of(ring: KeyRing, client: GatewayClient) -> str | None:
    """The id that carries this registration; None for one that is too long for it."""
    text = client.model_dump_json(exclude=_NOT_CARRIED, exclude_defaults=True)
    sealed = seal(_key(ring), _place(client.tenant, client.id), zlib.compress(text.encode(), 9))
    presented = f"{client.id}.{_text(sealed)}"
    return presented if len(presented) <= LONGEST_CLIENT_ID else None


def registration_in(ring: KeyRing, tenant: Tenant, client_id: str) -> GatewayClient | None:
    """The registration that an id carries; None for an id that isn't of this form, or wasn't given out."""
    match = _SHAPE.match(client_id) if len(client_id) <= LONGEST_CLIENT_ID else None
    if match is None:
        return None
    id = OAuthClientId(match[1])
    try:
        sealed = base64.urlsafe_b64decode(match[2] + "=" * (-len(match[2]) % 4))
        if _text(sealed) != match[2]:  # one id has one spelling
            return None
        text = zlib.decompress(open_sealed(_key(ring), _place(tenant, id), sealed))
    except binascii.Error:
        return None
    except Failure as failure:
        if failure.code is not ErrorCode.SEAL_BROKEN:
            raise
        return None
    named = {"tenant": tenant, "id": id, "client_id": id, "kind": ClientKind.REGISTERED}
    return GatewayClient(**{**json.loads(text), **named})


def _key(ring: KeyRing) -> SealingKey:
    return SealingKey("registration", ring.derive("client registrations"))


def _place(tenant: Tenant, id: OAuthClientId) -> AssociatedData:
    return AssociatedData(tenant, "oauth_client", id, "client_id")


def _text(sealed: bytes) -> str:
    return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()
