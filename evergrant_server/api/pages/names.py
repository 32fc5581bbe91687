"""What pages call a provider, or an issuer at which people log in."""

from urllib.parse import urlsplit

from evergrant_server.core.integrations import Integration
from providers.definition.schema import ProviderSpec


def issuer_name(integration: Integration) -> str:
    """The host of the integration's issuer, with its port."""
    return urlsplit(integration.authorization_server or "").netloc or integration.name


def provider_display_name(spec: ProviderSpec, integration: Integration) -> str:
    """The provider's display name; of a discovered provider the host of its issuer, with its port."""
    discovered = spec.discovery and integration.authorization_server is not None
    return issuer_name(integration) if discovered else spec.display_name
