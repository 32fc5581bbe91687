"""An app that presents a client certificate, as the proxy of a trusted hop hands it on."""

from base64 import b64encode
from typing import Any

import httpx2

from evergrant_server.core.access import Action
from evergrant_server.crypto.client_certificates import AppCertificate
from tests.fakes.api import Api
from tests.fakes.certificates import OwnCertificate

METADATA = "/.well-known/oauth-authorization-server"


def client_cert(own: OwnCertificate) -> str:
    """The value of `Client-Cert` (RFC 9440 section 2.1)."""
    return f":{b64encode(AppCertificate.of_pem(own.certificate).der).decode()}:"


class CertifiedApp:
    """An app with a registered credential. Each request may come with another certificate, or none."""

    def __init__(self, api: Api, app_id: str, certificate: OwnCertificate) -> None:
        self.api, self.id, self.certificate = api, app_id, certificate

    async def ask(self, *headers: str, name: str = "Client-Cert", **more: str | None) -> httpx2.Response:
        """Send a token request with these values of the header; none: the app's certificate."""
        form = {"grant_type": "client_credentials", "client_id": self.id, **more}
        given = {key: it for key, it in form.items() if it is not None}
        sent = [(name, it) for it in headers or (client_cert(self.certificate),)]
        return await self.api.client.post("/oauth/token", data=given, headers=sent)

    async def ask_with(self, certificate: OwnCertificate) -> httpx2.Response:
        return await self.ask(client_cert(certificate))

    async def token(self) -> str:
        answer = await self.ask()
        assert answer.status_code == 200, answer.text
        return answer.json()["access_token"]

    async def lease(
        self, token: str, certificate: OwnCertificate | None, client: httpx2.AsyncClient | None = None
    ) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {token}"}
        if certificate is not None:
            headers["Client-Cert"] = client_cert(certificate)
        body = {"integration": "crm", "subject": "user-1"}
        return await (client or self.api.client).post("/v1/lease", json=body, headers=headers)


async def certified_app(
    api: Api, admin: str, certificate: OwnCertificate, method: str, parameters: dict[str, Any]
) -> CertifiedApp:
    """The app `sync`, which may lease, with a credential named `main`."""
    await api.active_for("sync", Action.TOKEN)
    await put_credential(api, admin, method, parameters)
    return CertifiedApp(api, (await api.app_named("sync")).id, certificate)


async def put_credential(
    api: Api, admin: str, method: str, parameters: dict[str, Any], name: str = "main"
) -> None:
    body = {"method": method, "parameters": parameters}
    answer = await api.call("PUT", f"/v1/apps/sync/credentials/{name}", admin, json=body)
    assert answer.is_success, answer.text
