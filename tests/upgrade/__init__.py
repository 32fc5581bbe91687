"""`python -m tests.upgrade`: two releases side by side, with real processes on real PostgreSQL.

Owns the proof that an upgrade and its roll-back stop nothing. The release before is a commit's own code
(`git archive`), the newer one is this checkout's. Two APIs behind a balancer, two workers and a gateway are
replaced one at a time, there and back and there again, as `doctor upgrade` says, while apps lease, call
through the gateway, connect and revoke, and tokens of thirty seconds are refreshed. `later_release` makes a
next release of this code, for tests in which this code is the older one.
"""
