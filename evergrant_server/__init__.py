"""The Evergrant server: managed OAuth as an application run from a checkout or an image.

Owns everything between an app that names a connection and the provider that issued its
tokens, except the life stories (`workflows/`), their side effects (`activities/`) and how
each provider speaks (`providers/`).
"""

__version__ = "0.1.0"
