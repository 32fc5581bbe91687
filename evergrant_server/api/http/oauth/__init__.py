"""How access tokens of the gateways' clients are recognized."""
