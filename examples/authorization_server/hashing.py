"""How this project hashes secrets at rest."""

from django.contrib.auth.hashers import PBKDF2PasswordHasher


class QuickHasher(PBKDF2PasswordHasher):
    """PBKDF2 with few rounds: every secret here is random, so there is nothing to guess.

    Django's default takes hundreds of milliseconds a call, and django-oauth-toolkit hashes the
    client secret on each request to the token endpoint.
    """

    algorithm = "pbkdf2_sha256_quick"
    iterations = 1_000
