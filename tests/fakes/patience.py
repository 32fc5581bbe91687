"""How long a test waits for what has to come. It costs nothing when all is well, and a busy machine may be slow."""

PATIENCE_S = 120.0
