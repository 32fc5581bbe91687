"""A transmitter of security events: its keys, and tokens as good or as bad as a test wants."""

import base64
import hashlib
import hmac
import json
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, RSAKey

ISSUER = "https://transmitter.example/"
ACCOUNT_DISABLED = "https://schemas.openid.net/secevent/risc/event-type/account-disabled"
SESSIONS_REVOKED = "https://schemas.openid.net/secevent/risc/event-type/sessions-revoked"
TOKEN_REVOKED = "https://schemas.openid.net/secevent/oauth/event-type/token-revoked"
TOKENS_REVOKED = "https://schemas.openid.net/secevent/oauth/event-type/tokens-revoked"
VERIFICATION = "https://schemas.openid.net/secevent/ssf/event-type/verification"
MEDIA_TYPE = "application/secevent+jwt"


class Transmitter:
    """`token()` is a good one; named arguments change or (None) leave out claims and headers."""

    def __init__(self) -> None:
        self.key = RSAKey.generate_key(2048, {"kid": "rsa-1", "use": "sig"})
        self.ec = ECKey.generate_key("P-256", {"kid": "ec-1", "use": "sig"})
        self.audience = "client-1"
        self.count = 0

    @property
    def jwks(self) -> dict[str, Any]:
        return {"keys": [self.key.as_dict(private=False), self.ec.as_dict(private=False)]}

    def token(
        self,
        iat: float,
        *,
        kind: str = ACCOUNT_DISABLED,
        subject: dict[str, Any] | None = None,
        event: dict[str, Any] | None = None,
        header: dict[str, Any] | None = None,
        key: Any = None,
        undated: bool = False,
        **claims: Any,
    ) -> bytes:
        self.count += 1
        subject = subject or {"subject_type": "iss-sub", "iss": ISSUER, "sub": "account-1"}
        all_claims = {
            "iss": ISSUER,
            "aud": self.audience,
            "iat": None if undated else iat,
            "jti": f"event-{self.count}",
            "events": {kind: {"subject": subject, **(event or {})}},
            **claims,
        }
        all_headers = {"alg": "RS256", "kid": "rsa-1", "typ": "secevent+jwt", **(header or {})}
        return self.signed(
            {name: it for name, it in all_headers.items() if it is not None},
            {name: it for name, it in all_claims.items() if it is not None},
            key or (self.ec if all_headers["alg"] == "ES256" else self.key),
        )

    @staticmethod
    def signed(header: dict[str, Any], claims: dict[str, Any], key: Any) -> bytes:
        registry = jws.JWSRegistry(algorithms=[header["alg"]], strict_check_header=False)
        return jws.serialize_compact(header, json.dumps(claims), key, registry=registry).encode()

    def signed_with_public_key(self, iat: float) -> bytes:
        """HS256, keyed with the bytes of the RSA public key: the classic confusion."""
        header = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"rsa-1","typ":"secevent+jwt"}').rstrip(b"=")
        signing = header + b"." + self.token(iat).split(b".")[1]
        mac = hmac.new(self.key.as_pem(private=False), signing, hashlib.sha256).digest()
        return signing + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")

    def unsigned(self, iat: float) -> bytes:
        good = self.token(iat).split(b".")[1]
        header = base64.urlsafe_b64encode(json.dumps({"alg": "none", "typ": "secevent+jwt"}).encode())
        return header.rstrip(b"=") + b"." + good + b"."


def id_token(sub: str, **claims: Any) -> str:
    """The payload is what counts: it came from the token endpoint."""
    payload = base64.urlsafe_b64encode(json.dumps({"sub": sub, **claims}).encode()).rstrip(b"=").decode()
    return f"e30.{payload}.c2ln"
