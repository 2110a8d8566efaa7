"""What our own processes log: our stages at INFO, libraries at WARNING."""

import logging

_OWN_PACKAGES = ("deployments", "workers", "planner")


def configure_logging() -> None:
    """Sends our packages' lines to standard error, once a process. Serve adds the time. Prompts are never logged."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    for name in _OWN_PACKAGES:
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False
