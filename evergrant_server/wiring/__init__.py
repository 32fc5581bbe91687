"""Puts a process's parts together. With `cli` and `worker.py`, the only code that knows all of them.

Owns what a process opens and closes (`platform`) and what a worker runs (`worker_parts`). Decides
nothing: every choice comes from the settings.
"""
