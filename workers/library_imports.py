"""Imports what ranks compute with: on a small model most of the seconds in which a group starts. Ray-free."""

import gc


def import_libraries() -> None:
    """Imports what loading and calling need, in this process, for good.

    The collector is held meanwhile: it walked the ever growing heap of modules again and again (4.7 s of CPU instead of
    3.4 s on a core of a small machine). What is there afterwards stays as long as the process and is not walked again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        import workers.components
        import workers.leader
        import workers.process_group  # noqa: F401
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
