"""Workload identity: which issuers a tenant trusts, and which of their tokens are of an app. Pure.

Owns the rules of each platform. Doesn't own signatures (`providers.responses.workload_token`), nor who reads
keys (`activities.workloads`).
"""
