"""20 GB of weights from files to the GPU: read once to their place, and diffusers' `from_pretrained(device_map=)`.

    python -m benchmarks.loading [--small] [--repeats N]

Warm: the files are in the page cache. Cold: they are dropped from it before each run; `raw` is the disk alone, read by
as many threads into host memory.
"""

import json
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import architectures as arch
from benchmarks.measuring import Options, free, read_options, time_once
from benchmarks.record import keep
from workers.direct_load import load_component
from workers.stream_build import build_empty, component_class
from workers.stream_copy import NUM_READERS

NAME = "loading"
OTHER_READERS = (4, 8, 12)
_CHUNK_BYTES = 16 * 2**20


def run(options: Options) -> list[dict[str, Any]]:
    """One row a way and state of the cache."""
    architecture = arch.SMALL_WAN if options.is_small else arch.WAN_14B.scaled(num_layers=28)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_bytes = write_checkpoint(architecture, folder, options)
        ours = partial(
            load_component, folder, library=architecture.library, class_name=architecture.class_name,
            dtype=options.dtype, device=options.device,
        )  # fmt: skip
        ways: dict[str, Callable[[], Any]] = {
            "heliograph": ours,
            "from_pretrained, device_map": lambda: component_class(
                architecture.library, architecture.class_name
            ).from_pretrained(folder, torch_dtype=options.dtype, device_map=str(options.device)),
        }  # fmt: skip
        rows = []
        for way, load in ways.items():
            load()  # loads libraries, and the files into the cache
            rows.append(_row(way, "warm", load, num_bytes, options))
        for count in OTHER_READERS:
            rows.append(
                _row(f"heliograph, {count} readers", "warm", partial(ours, num_readers=count), num_bytes, options)
            )
        empty = partial(build_empty, component_class(architecture.library, architecture.class_name), folder)
        rows.append(_row("the empty model alone", "warm", partial(empty, dtype=options.dtype), 0, options))
        for way, load in [*ways.items(), ("raw", lambda: read_raw(folder))]:
            rows.append(_row(way, "cold", load, num_bytes, options, before=lambda: drop_from_cache(folder)))
    return rows


def write_checkpoint(architecture: arch.Architecture, folder: Path, options: Options) -> int:
    """Random weights as `save_pretrained` writes them; returns their bytes."""
    module: Any = arch.build_random(architecture, folder, device=options.device, dtype=options.dtype)
    module.save_pretrained(folder, max_shard_size="5GB")
    del module
    free(options.device)
    os.sync()
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def drop_from_cache(folder: Path) -> None:
    """Drops the files' clean pages; what is mapped elsewhere stays."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_raw(folder: Path) -> int:
    """Reads all files by `NUM_READERS` threads into one buffer each, and keeps nothing."""
    pieces = [
        (file, offset)
        for file in sorted(folder.glob("*.safetensors"))
        for offset in range(0, file.stat().st_size, _CHUNK_BYTES)
    ]

    def read(piece: tuple[Path, int]) -> int:
        descriptor = os.open(piece[0], os.O_RDONLY)
        try:
            return len(os.pread(descriptor, _CHUNK_BYTES, piece[1]))
        finally:
            os.close(descriptor)

    with ThreadPoolExecutor(NUM_READERS) as pool:
        return sum(pool.map(read, pieces))


def _row(
    way: str,
    cache: str,
    load: Callable[[], Any],
    num_bytes: int,
    options: Options,
    before: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    seconds = []
    for _ in range(options.num_repeats if cache == "warm" else 1):
        free(options.device)
        before()
        taken, result = time_once(load, options)
        seconds.append(taken)
        del result
    best = sorted(seconds)[len(seconds) // 2]
    row = {"way": way, "cache": cache, "gb": num_bytes / 1e9, "s": best, "gb_s": num_bytes / 1e9 / best}
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    keep(NAME, run(read_options(__doc__)))
