"""Every await of the refresh and of the code exchange, named when its module is loaded, and its faults.

Owns the points, the faults that strike at one, and the builds that are broken on purpose. Knows no test case.
"""
