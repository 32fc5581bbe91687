"""A fast hasher for the random secrets of this project."""

from django.contrib.auth.hashers import PBKDF2PasswordHasher


class QuickHasher(PBKDF2PasswordHasher):
    """PBKDF2 with few rounds, which is enough because every secret here is random.

    Django's default takes hundreds of milliseconds a call, and django-oauth-toolkit hashes the
    client secret on each request to the token endpoint.
    """

    algorithm = "pbkdf2_sha256_quick"
    iterations = 1_000
