"""What a token exchange asks for: how far it reaches, how long, and for whom (RFC 8693 section 2.1)."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import NamedTuple

from evergrant_server.api.oauth.client_authentication import TokenRefused
from evergrant_server.core.access import Action
from evergrant_server.core.agents.delegations import DELEGATED_ACTIONS, LONGEST, Reach
from evergrant_server.core.ids import is_id, is_slug
from evergrant_server.settings import Settings

ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
MOST_NAMED = 50  # scopes, and resources
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")  # RFC 6749 section 3.3


class Wanted(NamedTuple):
    """`may_act` names the app that alone may exchange the token further; None: it is used as it is."""

    reach: Reach
    lifetime: timedelta
    may_act: str | None


def read_wanted(parameters: Mapping[str, str], settings: Settings) -> Wanted:
    """Raises TokenRefused."""
    if parameters.get("requested_token_type", ACCESS_TOKEN) != ACCESS_TOKEN:
        raise TokenRefused("invalid_request", f"requested_token_type must be {ACCESS_TOKEN}.")
    if parameters.get("audience", settings.public_url) != settings.public_url:
        raise TokenRefused("invalid_target", "audience must be this server's issuer.")
    integrations, connections, actions = _targets(parameters.get("resource"), settings)
    scopes = _scopes(parameters.get("scope"))
    reach = Reach(scopes=scopes, integrations=integrations, connections=connections, actions=actions)
    return Wanted(reach, _lifetime(parameters.get("expires_in")), parameters.get("may_act"))


def _scopes(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    scopes = tuple(dict.fromkeys(text.split(" ")))
    if len(scopes) > MOST_NAMED or not all(_SCOPE.fullmatch(it) for it in scopes):
        raise TokenRefused("invalid_scope", f"scope: at most {MOST_NAMED}, with one space between two.")
    return scopes


def _targets(
    text: str | None, settings: Settings
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None, tuple[Action, ...]]:
    """Integrations, connections and actions. A resource of the gateway is for calls through it alone; the
    base URLs stand for everything behind them."""
    integrations: list[str] = []
    connections: list[str] = []
    actions = DELEGATED_ACTIONS
    resources = [] if text is None else text.split(" ")
    for resource in resources:
        base, gateway = settings.public_url, settings.gateway_public_url
        integration = resource.removeprefix(f"{base}/v1/integrations/")
        proxied = resource.removeprefix(f"{gateway}/v1/proxy/")
        proxied = resource.removeprefix(f"{gateway}/mcp/") if proxied == resource else proxied
        connection = resource.removeprefix(f"{base}/v1/connections/")
        if resource == gateway or (proxied != resource and is_id(proxied, "con")):
            actions = (Action.PROXY,)
        if is_id(connection, "con") or is_id(proxied, "con"):
            connections.append(connection if is_id(connection, "con") else proxied)
        elif integration != resource and is_slug(integration):
            integrations.append(integration)
        elif resource not in (base, gateway):
            why = "resource must be a URL of this server's connections, integrations, or its gateway."
            raise TokenRefused("invalid_target", why)
    if len(resources) > MOST_NAMED:
        raise TokenRefused("invalid_target", f"At most {MOST_NAMED} resources.")
    if not integrations and not connections:
        return None, None, actions
    return tuple(dict.fromkeys(integrations)), tuple(dict.fromkeys(connections)), actions


def _lifetime(text: str | None) -> timedelta:
    if text is None:
        return LONGEST
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise TokenRefused("invalid_request", "expires_in must be a number of seconds.")
    return min(timedelta(seconds=int(text)), LONGEST)
