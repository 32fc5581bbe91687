"""What providers' APIs allow a client, and how apps share it: replies' headers, quotas, who may call when.

Pure: moments are seconds of a monotonic clock and arguments. Owns no state of a process (`gateway`) and no
limit of Evergrant's own (`access.limits`), nor those of token endpoints (`core.single_use.pacing`).
"""
