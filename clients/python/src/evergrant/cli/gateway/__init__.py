"""The command that goes through the gateway."""
