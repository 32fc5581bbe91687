"""What people decide: requests for access, agents' calls, and commands that need a second admin.

Doesn't own how a command waits for its second admin (http), nor a decision's life (core).
"""
