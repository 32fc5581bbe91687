"""The calls of Evergrant's HTTP API as data, one module a feature, with how each response is parsed.

Owns paths, request bodies and the parsing of responses. Owns no transport: `Evergrant` and
`AsyncEvergrant` send the same calls.
"""
