"""How services speak OAuth: a catalogue of data, and the code that sends and judges by it.

Owns the definitions (`catalog/`, `spec.py`), the registry, building authorization URLs,
sending token, refresh and revocation requests, discovery, and judging what comes back.
Doesn't own when to send (workflows), what to keep (store) or where one may connect
(`evergrant_server.egress`). A provider's oddity is a field of its file, or a named hook in
`quirks/`; no code asks for a provider by name.
"""
