"""People: the rules that say at which issuer they log in, and the sessions of those who administer.

Doesn't own how a request is authenticated (`access`), the login's way through the browser (`api.pages`), nor
rights (`core`).
"""
