"""A receiver of Evergrant's webhooks in twenty lines, with the standard library.

Owns the verification and the record of handled events. What an event causes is the receiver's own.
"""
