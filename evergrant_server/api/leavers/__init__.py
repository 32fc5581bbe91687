"""People who leave: orders about one of them, the tenant's rule, and its directory over SCIM.

Doesn't own what an order writes (`access.leavers`), nor its incident and report (`api.incidents`).
"""
