"""The Evergrant server: managed OAuth as an application run from a checkout or an image.

Owns everything between an app that names a connection and the provider that issued its
tokens, except the workflows of connections (`workflows/`), their side effects (`activities/`)
and the requests and replies of each provider (`providers/`).
"""

__version__ = "0.1.0"
