"""Descriptions of scopes for subjects."""

import re

_DESCRIPTIONS = {
    "openid": "Know who you are",
    "profile": "See your name and profile",
    "email": "See your email address",
    "address": "See your postal address",
    "phone": "See your phone number",
    "offline_access": "Keep access while you are away",
    "offline": "Keep access while you are away",
    "offline.access": "Keep access while you are away",
    "read": "Read your data",
    "write": "Change your data",
}


def describe_scope(scope: str) -> str:
    """The description of a well-known scope, else its name as words."""
    known = _DESCRIPTIONS.get(scope.lower())
    if known is not None:
        return known
    name = scope.rstrip("/").rsplit("/", 1)[-1] if "://" in scope else scope
    words = " ".join(part for part in re.split(r"[\s._:/\-]+", name) if part)
    return words[:1].upper() + words[1:] if words else scope
