"""An enterprise's identity provider that issues ID-JAGs, and an MCP server whose issuer takes them (both
scripted: see `scripted_provider`).

draft-ietf-oauth-identity-assertion-authz-grant sections 4.3 and 4.4. The identity provider knows in `clients`
which client of ours there is which at an issuer, and grants what is there; the issuer takes each ID-JAG once.
"""

import secrets
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError

from tests.fakes.providers.client_grants import JWT_BEARER, TOKEN_EXCHANGE
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.fakes.providers.scripted_mcp import ScriptedMcp
from tests.fakes.providers.scripted_provider import Family

ID_JAG = "urn:ietf:params:oauth:token-type:id-jag"
ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"
TYPE = "oauth-id-jag+jwt"


class EnterpriseIdp(LoginIssuer):
    """`renews`: a refresh brings a new id token."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.clients: dict[str, str] = {}  # by issuer
        self.renews = True

    def id_jag(self, changes: dict[str, Any] | None = None, **header: Any) -> str:
        """One with these claims; a claim of None is left out."""
        at = int(self._now().timestamp())
        made = {
            "iss": self.issuer,
            "jti": secrets.token_urlsafe(12),
            "iat": at,
            "exp": at + 300,
            **(changes or {}),
        }
        claims = {name: value for name, value in made.items() if value is not None}
        return jwt.encode({"alg": "ES256", "kid": self.key.kid, "typ": TYPE, **header}, claims, self.key)

    def _token(self, params: dict[str, str]) -> tuple[int, dict[str, Any]]:
        match params.get("grant_type"):
            case grant if grant == TOKEN_EXCHANGE:
                return self._exchanged(params)
            case "refresh_token" if not self.renews:
                return super()._token(params)
            case _:
                nonce = self._codes.get(params.get("code", ""), {}).get("nonce")
                status, reply = super()._token(params)
                return status, reply | ({"id_token": self.sign(self.claims(nonce))} if status == 200 else {})

    def _exchanged(self, params: dict[str, str]) -> tuple[int, dict[str, Any]]:
        audience = params.get("audience", "")
        types = (params.get("requested_token_type"), params.get("subject_token_type"))
        if types != (ID_JAG, ID_TOKEN):
            return 400, {"error": "invalid_request"}
        try:
            subject = jwt.decode(params["subject_token"], self.key, algorithms=["ES256"]).claims
        except JoseError:
            return 400, {"error": "invalid_grant"}
        if subject["aud"] != self.client_id or subject["exp"] <= self._now().timestamp():
            return 400, {"error": "invalid_grant", "error_description": "The id token isn't good."}
        if audience not in self.clients:
            return 400, {"error": "invalid_target"}
        granted = {name: params[name] for name in ("resource", "scope") if name in params}
        named = {"sub": subject["sub"], "aud": audience, "client_id": self.clients[audience]}
        reply = {"issued_token_type": ID_JAG, "token_type": "N_A", "expires_in": 300}
        return 200, {**reply, "access_token": self.id_jag({**named, **granted})}


class EnterpriseMcp(ScriptedMcp):
    """Trusts `idp`; `jags` are the claims of the ID-JAGs that it took."""

    def __init__(self, idp: EnterpriseIdp, **metadata: Any) -> None:
        profiles = ["urn:ietf:params:oauth:grant-profile:id-jag"]
        super().__init__(**{"authorization_grant_profiles_supported": profiles, **metadata})
        self._idp = idp
        self.client_id = "at-the-server"
        self.jags: list[dict[str, Any]] = []

    def _token(self, params: dict[str, str]) -> tuple[int, dict[str, Any]]:
        if params.get("grant_type") != JWT_BEARER:
            return super()._token(params)
        try:
            jag = jwt.decode(params.get("assertion", ""), self._idp.key, algorithms=["ES256"])
        except JoseError:
            return 400, {"error": "invalid_grant"}
        claims = jag.claims
        ours = (claims["aud"], claims["client_id"], jag.header.get("typ"))
        if ours != (self.issuer, self.client_id, TYPE) or claims["jti"] in [it["jti"] for it in self.jags]:
            return 400, {"error": "invalid_grant"}
        self.jags.append(claims)
        family = Family(claims.get("scope", ""), "")
        self.families.append(family)
        reply = self._issue(family)
        reply.pop("refresh_token", None)
        return 200, reply
