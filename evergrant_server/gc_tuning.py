"""The garbage collector of a process that serves: what start-up made is never looked at again."""

import gc

_YOUNG, _MIDDLE, _OLD = 50_000, 50, 100  # allocations, then collections of the generation before


def tune_garbage_collector() -> None:
    """Call once, when everything is imported and open.

    A full collection walks every object of every module and stops the event loop meanwhile, so
    it lengthens the slowest leases. What is frozen isn't walked, and the rest less often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
