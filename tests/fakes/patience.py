"""How long a test waits for a condition: generous, since a busy machine is slow and success costs no wait."""

PATIENCE_S = 120.0
