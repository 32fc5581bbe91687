"""Key services: what wraps the root keys, one key of the service for each purpose.

Owns the port (`port`), the binding of every wrapped value to its row, which stands once above all
backends (`bound`), the threads of clients that block (`blocking`), and the backends, one module each,
imported only where the setting names it (`opening`). Doesn't own the root keys, nor how long a process
holds them. A backend is called outside every transaction.
"""
