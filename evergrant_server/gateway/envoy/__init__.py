"""External authorization for Envoy (`ext_authz`), over HTTP and gRPC: Envoy sends, Evergrant decides which
credential goes in (ADR 0058)."""
