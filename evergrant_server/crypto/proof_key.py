"""New keys that tokens are bound to."""

import json

from joserfc.jwk import ECKey

from evergrant_server.core.connections.credentials import ProofKey
from evergrant_server.core.secret import Secret


def new_proof_key() -> ProofKey:
    """A new P-256 key, which every server with DPoP accepts (RFC 9449 section 4.2)."""
    key = ECKey.generate_key("P-256", private=True)
    public = {name: str(value) for name, value in key.as_dict(private=False).items()}
    return ProofKey(
        private=Secret(json.dumps(key.as_dict(private=True))),
        public={name: public[name] for name in ("kty", "crv", "x", "y")},
        thumbprint=key.thumbprint(),
    )
