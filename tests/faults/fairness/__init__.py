"""`make faults`, its third part: one tenant's trouble, and what another tenant's leases cost meanwhile.

Real processes: API, worker, PostgreSQL, Temporal. Each trouble is compared with the same installation
without it, moments before. Owns the troubles, the probe and the verdict. The ratios are this harness's alone:
what has to hold on every machine is tested by the order in which things happen.
"""
