"""Where compiled kernels are kept between starts. No torch here: it must be said before torch is loaded."""

import os
from collections.abc import MutableMapping
from pathlib import Path

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled_code(environment: MutableMapping[str, str] = os.environ) -> Path:
    """Names a folder under the user's cache folder, on the rank's own node, unless the environment names one already.

    The next start of the same model on the same kind of GPU finds its kernels there.
    """
    base = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(environment.setdefault(VARIABLE, str(Path(base) / "heliograph" / "compiled")))
