"""Evergrant's HTTP API: each operation as a call, what its response is parsed to, and one HTTP attempt.

`models` and `operations` are generated from the OpenAPI document; `commands` and `leases` are the calls whose
arguments differ from the document's. Owns no transport: `Evergrant` and `AsyncEvergrant` send the same calls.
"""
