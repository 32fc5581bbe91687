"""The search attributes of a connection's workflow: few, prefixed, and rarely changed.

On SQL visibility stores a namespace has ten keywords in all.
"""

TENANT = "EvergrantTenant"
PROVIDER = "EvergrantProvider"
INTEGRATION = "EvergrantIntegration"
STATE = "EvergrantState"
SUBJECT = "EvergrantSubject"  # a keyed hash, never the subject

KEYWORDS = (TENANT, PROVIDER, INTEGRATION, STATE, SUBJECT)
