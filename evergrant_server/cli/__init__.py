"""The operator's commands: start, upgrade, keys, reconcile, verify.

Owns arguments, output and exit statuses; what the commands do lives in the packages they
call. A failure is one message with a code and what to do, and never a traceback.
"""
