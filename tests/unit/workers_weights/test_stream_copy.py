from pathlib import Path

import pytest
import torch

from workers.errors import LoadError
from workers.stream_copy import ReadJob, run_jobs, staging_bytes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "values"
    path.write_bytes(torch.arange(1000, dtype=torch.float32).numpy().tobytes())
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("chunk_bytes", [16, 100, 4096, 1 << 20])
@pytest.mark.parametrize("num_readers", [1, 3])
def test_all_values_arrive(file: Path, dtype: torch.dtype, chunk_bytes: int, num_readers: int) -> None:
    """In place where the dtype is the stored one, through the staging buffer where it is not."""
    first, second = torch.full((300,), -1, dtype=dtype), torch.full((600,), -1, dtype=dtype)
    jobs = [ReadJob(file, 400 * 4, torch.float32, second), ReadJob(file, 0, torch.float32, first)]
    assert run_jobs(jobs, num_readers=num_readers, chunk_bytes=chunk_bytes) == 3600
    values = torch.arange(1000, dtype=torch.float32)
    assert torch.equal(first, values[:300].to(dtype))
    assert torch.equal(second, values[400:].to(dtype))


def test_file_that_ends_early_is_named(file: Path) -> None:
    with pytest.raises(LoadError, match="values is torn: it ends at byte 4000, 40 more"):
        run_jobs([ReadJob(file, 0, torch.float32, torch.empty(1010))])


def test_one_failure_stops_all_readers(file: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot be opened"):
        run_jobs([ReadJob(tmp_path / "absent", 0, torch.float32, torch.empty(1))])


def test_progress_adds_up(file: Path) -> None:
    told: list[int] = []
    run_jobs([ReadJob(file, 0, torch.float32, torch.empty(1000))], chunk_bytes=256, on_bytes=told.append)
    assert sum(told) == 4000
    assert max(told) <= 256


def test_staging_is_two_buffers_a_reader() -> None:
    assert staging_bytes(num_readers=4, chunk_bytes=1 << 20) == 8 << 20


def test_nothing_to_read_is_fine() -> None:
    assert run_jobs([]) == 0
