"""The far ends of events: a transmitter of security events and its keys, and a receiver of webhooks."""
