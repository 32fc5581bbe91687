"""What binds a consent to a session with the app: a verifier that stays there, and its challenge."""

from base64 import urlsafe_b64encode
from hashlib import sha256
from secrets import token_urlsafe


def new_verifier() -> tuple[str, str]:
    """A verifier, and its challenge.

    Keep the verifier in the person's session with your app; give the challenge to `connect`,
    `reauthorize` or `lease`, and the verifier to `confirm`.
    """
    verifier = token_urlsafe(32)
    return verifier, challenge_of(verifier)


def challenge_of(verifier: str) -> str:
    """S256 of RFC 7636 section 4.2."""
    return urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()
