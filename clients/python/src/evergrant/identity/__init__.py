"""How an app proves its identity, and the access tokens that both clients get for it (docs/apps.md).

Owns identities, which are called with Evergrant's issuer for every token and return what goes into the token
request beside the grant type. Yours may be a function, for a key in a key service:

    Evergrant(identity=lambda issuer: client_assertion(sign_elsewhere(issuer)))

Doesn't own when a request is sent again: that is the transport's.
"""

from evergrant.identity.certificate import Certificate
from evergrant.identity.private_key import Identity, PrivateKey, client_assertion
from evergrant.identity.workload_token import WorkloadToken

__all__ = ["Certificate", "Identity", "PrivateKey", "WorkloadToken", "client_assertion"]
