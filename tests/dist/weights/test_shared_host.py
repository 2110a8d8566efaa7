"""Host memory that two real processes hold together: allocated once, filled once, gone with them."""

import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.distributed import FileStore

from tests.dist.weights.tiny_models import WAN
from workers.direct_load import load_component
from workers.errors import GroupStartError
from workers.shared_host import MEMORY_NAME, NodeRanks, SharedHost
from workers.stream_engine import HostMemory, HostMemoryError
from workers.stream_offload import OffloadGroup, apply_offload, offload_place
from workers.streaming import apply_streaming, streaming_place

CPU = torch.device("cpu")
TIMEOUT_S = 100.0
pytestmark = pytest.mark.timeout(150)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer of 34 MB."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wide")
    config = {**WAN, "num_attention_heads": 16, "attention_head_dim": 32, "ffn_dim": 2048}
    WanTransformer3DModel(**config).save_pretrained(folder)
    return folder


def test_streamed_weights_are_held_and_read_once(wide: Path, tmp_path: Path) -> None:
    check_held_once(wide, tmp_path, stream)


@pytest.mark.full
def test_offloaded_weights_are_held_and_read_once(wide: Path, tmp_path: Path) -> None:
    check_held_once(wide, tmp_path, offload)


def check_held_once(wide: Path, tmp_path: Path, hold: Callable[..., Any]) -> None:
    shm_before = names_in_shm()
    with two_processes(hold, str(wide), tmp_path) as (processes, reports):
        first, second = reports
        flat = first["host_bytes"]
        assert flat == second["host_bytes"] > 30e6
        assert first["taken_bytes"] == flat
        assert second["taken_bytes"] == 0
        assert first["files"] == second["files"]
        # Proportional set size: a page that two processes map counts half in each.
        assert first["pss"] + second["pss"] == pytest.approx(flat, rel=0.02)
        assert first["bytes_read"] >= first["bytes_of_flat"] > 0.9 * flat
        assert second["bytes_read"] == first["bytes_read"] - first["bytes_of_flat"]
        assert first["result"] == second["result"]
        assert names_in_shm() == shm_before
        for process in processes:
            process.kill()  # nobody cleans up
            process.join(20)
        assert not mapped_anywhere(first["files"])
    assert names_in_shm() == shm_before


def test_what_the_filler_is_refused_is_refused_to_all(tmp_path: Path) -> None:
    filler, other = pair(tmp_path)
    with pytest.raises(HostMemoryError, match="keep more blocks resident"):
        HostMemory(max_bytes=10, shared=filler).take(1000)
    with pytest.raises(HostMemoryError, match="keep more blocks resident"):
        HostMemory(shared=other).take(1000)


def test_a_filler_that_falls_back_keeps_nobody_waiting(tmp_path: Path) -> None:
    filler, other = pair(tmp_path)
    filler.withdraw("rank 0 has fallen back")
    with pytest.raises(HostMemoryError, match="rank 0 has fallen back"):
        HostMemory(shared=other).take(1000)


def test_a_sharer_that_falls_back_keeps_nobody_waiting(tmp_path: Path) -> None:
    filler, other = pair(tmp_path)
    HostMemory(shared=filler).take(1000)
    other.withdraw("rank 1 has fallen back")
    filler.finish()


def test_a_filler_that_never_fills_is_an_error_in_time(tmp_path: Path) -> None:
    filler, other = pair(tmp_path, timeout_s=0.3)
    HostMemory(shared=filler).take(1000)
    memory = HostMemory(shared=other)
    memory.take(1000)
    with pytest.raises(GroupStartError, match="filled"):
        memory.finish_filling()


def test_memory_that_cannot_be_mapped_is_replaced_by_a_copy_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filler, other = pair(tmp_path)
    HostMemory(shared=filler).take(1000)
    store = FileStore(str(tmp_path / "store"), 2)
    store.set("transformer/0", "1:9999:1000")  # no such file in that process
    memory = HostMemory(shared=other)
    assert memory.take(1000).nbytes == 1000
    assert "holds a copy of its own" in caplog.text
    assert not memory.is_filled_by_peer
    assert memory.taken_bytes == 1000


def test_ranks_elsewhere_share_nothing(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path / "store"), 2)
    store.set("node_of/1", "another machine")
    node = NodeRanks(store, world_rank=0, num_ranks=2, timeout_s=5)
    assert node.ranks == (0,)
    assert node.share("transformer", holders=(0, 1)) is None


def pair(folder: Path, *, timeout_s: float = 10.0) -> tuple[SharedHost, SharedHost]:
    store = FileStore(str(folder / "store"), 2)
    options: dict[str, Any] = {"filler_rank": 0, "num_sharers": 2, "timeout": timedelta(seconds=timeout_s)}
    return tuple(SharedHost(store, "transformer", is_filler=index == 0, **options) for index in range(2))  # type: ignore[return-value]


# What the processes do


def stream(memory: HostMemory, folder: str) -> tuple[Any, int, torch.nn.Module]:
    loaded = load(folder, place=streaming_place(device=CPU, num_resident_blocks=0, host=memory))
    memory.finish_filling()
    handle = apply_streaming(loaded.module, device=CPU, host=memory)
    return loaded, handle.host_bytes, loaded.module


def offload(memory: HostMemory, folder: str) -> tuple[Any, int, torch.nn.Module]:
    loaded = load(folder, place=offload_place(host=memory))
    memory.finish_filling()
    handle = apply_offload(loaded.module, device=CPU, group=OffloadGroup(), host=memory)
    return loaded, handle.host_bytes, loaded.module


def load(folder: str, **more: Any) -> Any:
    return load_component(
        Path(folder),
        library="diffusers",
        class_name="WanTransformer3DModel",
        dtype=torch.float32,
        device=CPU,
        **more,
    )


def run_process(hold: Callable[..., Any], rank: int, folder: str, scratch: str) -> None:
    torch.set_num_threads(1)
    store = FileStore(f"{scratch}/store", 2)
    node = NodeRanks(store, world_rank=rank, num_ranks=2, timeout_s=TIMEOUT_S)
    memory = HostMemory(shared=node.share("transformer/layerwise:0", holders=(0, 1)))
    loaded, host_bytes, module = hold(memory, folder)
    with torch.no_grad():
        result = module(
            hidden_states=torch.ones(1, 4, 1, 4, 4),
            timestep=torch.tensor([5]),
            encoder_hidden_states=torch.ones(1, 3, 24),
        )[0]
    parts = {stream: "blocks.", offload: ""}
    report = {
        "bytes_read": loaded.bytes_read,
        "bytes_of_flat": sum(p.nbytes for name, p in module.named_parameters() if name.startswith(parts[hold])),
        "host_bytes": host_bytes,
        "taken_bytes": memory.taken_bytes,
        "files": sorted({entry["file"] for entry in shared_maps("self")}),
        "pss": sum(entry["pss"] for entry in shared_maps("self")),
        "result": result.double().sum().item(),
    }
    part = Path(scratch) / f"rank{rank}.part"
    part.write_text(json.dumps(report))
    part.rename(Path(scratch) / f"rank{rank}.json")
    signal.pause()


def shared_maps(pid: str) -> list[dict[str, Any]]:
    """The process's maps of shared weights: which file (device and inode), and bytes by proportional set size."""
    found: list[dict[str, Any]] = []
    is_inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            is_inside = MEMORY_NAME in line
            if is_inside:
                found.append({"file": f"{fields[3]} {fields[4]}", "pss": 0})
        elif is_inside and fields[0] == "Pss:":
            found[-1]["pss"] += int(fields[1]) * 1024
    return found


def mapped_anywhere(files: list[str]) -> bool:
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            maps = (process / "maps").read_text()
        except OSError:
            continue
        if any(file in maps and MEMORY_NAME in maps for file in files):
            return True
    return False


def names_in_shm() -> set[str]:
    folder = Path("/dev/shm")
    return {entry.name for entry in folder.iterdir() if "heliograph" in entry.name} if folder.is_dir() else set()


@contextmanager
def two_processes(hold: Callable[..., Any], folder: str, scratch: Path) -> Iterator[tuple[list[Any], list[Any]]]:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=run_process, args=(hold, rank, folder, str(scratch)), daemon=True) for rank in range(2)
    ]
    for process in processes:
        process.start()
    try:
        yield processes, [wait_for(scratch / f"rank{rank}.json", processes) for rank in range(2)]
    finally:
        for process in processes:
            process.kill()
            process.join(20)


def wait_for(file: Path, processes: list[Any]) -> Any:
    deadline = time.monotonic() + TIMEOUT_S
    while not file.exists():
        assert time.monotonic() < deadline, f"{file.name} is not there after {TIMEOUT_S} s"
        assert all(process.is_alive() for process in processes), "a process ended early"
        time.sleep(0.05)
    return json.loads(file.read_text())
