"""The garbage collector of a process that serves: what start-up made is never looked at again."""

import gc

_YOUNG, _MIDDLE, _OLD = 50_000, 50, 100  # allocations, then collections of the generation before


def freeze_what_started() -> None:
    """Call once, when everything is imported and open.

    A full collection walks every object of every module. Under load it came several times a
    second and stopped the event loop each time; a lease's p99 was ten times its p50.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
