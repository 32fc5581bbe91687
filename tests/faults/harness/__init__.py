"""`make faults`: shows that a refresh never loses a connection, on real parts that are made to fail.

Owns two proofs. The *table* walks every await point of the refresh and of the code exchange, one
process for each case, and kills, stops or robs it there. The *run* lets seeded chance loose on a whole
installation. Both record what happened at the provider and in the database, and judge it afterwards.
Nothing of it is in the product: an import hook marks the points, in the harness's processes alone.
"""
