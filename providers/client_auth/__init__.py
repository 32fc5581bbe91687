"""Client credentials that are keys: signed assertions, generated secrets, TLS certificates.

Owns signing with the integration's key and parsing its certificate. Doesn't store them and doesn't
write them into requests (`providers.requests.wire`).
"""
