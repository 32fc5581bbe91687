"""What one app or agent can reach now, in plain words."""
