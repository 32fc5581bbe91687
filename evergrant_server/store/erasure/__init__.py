"""What is erased for good: the orders, the legal holds that forbid it, and the rows that go.

Doesn't own what audit records say (`audit.erasing`), nor the order of the steps (`activities.erasure`).
"""
