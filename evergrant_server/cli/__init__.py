"""The operator's commands: start, upgrade, keys, reconcile, verify.

Owns arguments, output and exit statuses. Doesn't own what the commands do, which is in the
packages they call. A failure is one message with a code and its repair, never a traceback.
"""
