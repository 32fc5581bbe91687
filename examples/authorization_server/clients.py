"""Creates the rows that a consent needs: one user, and confidential clients."""

from django.contrib.auth import get_user_model
from oauth2_provider.models import get_application_model

from examples.authorization_server.configuration import Credentials
from examples.authorization_server.options import SeededClient


def register(client: SeededClient) -> None:
    """Create a confidential client for one grant type, or replace the one with the same id."""
    application = get_application_model()
    application.objects.update_or_create(
        client_id=client.client_id,
        defaults={
            "client_secret": client.client_secret,
            "redirect_uris": client.redirect_uri,
            "client_type": application.CLIENT_CONFIDENTIAL,
            "authorization_grant_type": client.grant_type,
            "name": client.client_id,
        },
    )


def ensure_user(credentials: Credentials) -> None:
    users = get_user_model().objects
    if not users.filter(username=credentials.user).exists():
        users.create_user(credentials.user, password=credentials.password)
