"""Compiled blocks: as many graphs with streaming, cached norms and a chosen kernel as without, and none broken."""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch._dynamo.testing
import torch._inductor.config

from planner.plan import AttentionBackend
from tests.dist.weights.compare import build, leaves
from tests.dist.weights.tiny_models import find_model
from workers.attention_kernels import choose_attention_kernel, find_problem
from workers.calls import RankStats
from workers.compilation import DETERMINISTIC, MAX_GRAPHS_A_BLOCK, GraphWatch, compile_blocks
from workers.compile_cache import keep_compiled_code
from workers.norms import cache_norms
from workers.rank_measurements import measure_rank
from workers.streaming import apply_streaming

CPU = torch.device("cpu")
MODELS = ["WanTransformer3DModel", "FluxTransformer2DModel", "QwenImageTransformer2DModel"]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize(("stated", "is_deterministic"), [(None, True), ("0", False)])
def test_choices_by_timing_are_forbidden_unless_the_environment_allows_them(
    monkeypatch: pytest.MonkeyPatch, stated: str | None, is_deterministic: bool
) -> None:
    monkeypatch.delenv(DETERMINISTIC, raising=False)
    if stated is not None:
        monkeypatch.setenv(DETERMINISTIC, stated)
    with torch._inductor.config.patch(deterministic=False):
        compile_blocks(build(find_model("WanTransformer3DModel")))
        assert torch._inductor.config.deterministic is is_deterministic


def run(class_name: str, *changes: str, num_calls: int = 3) -> tuple[torch.Tensor, int, int]:
    """The last of some calls' result, and the numbers of graphs and of graph breaks."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = find_model(class_name)
    torch.manual_seed(0)
    module = build(model)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compile_blocks(module, backend=counter)
    if "norms" in changes:
        cache_norms(module)
    if "kernel" in changes:
        order = [AttentionBackend.MATH]
        assert choose_attention_kernel(module, order, device=CPU, dtype=torch.float32) is AttentionBackend.MATH
    if "streamed" in changes:
        apply_streaming(module, device=CPU)
    with torch.no_grad():
        for _ in range(num_calls):
            result = leaves(module(**model.inputs()))[0]
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    return result, counter.frame_count, breaks


@pytest.mark.parametrize("class_name", MODELS)
def test_streaming_norms_and_kernel_break_no_graph_and_make_none(class_name: str) -> None:
    expected, graphs, breaks = run(class_name)
    assert graphs > 0
    assert breaks == 0
    result, *counts = run(class_name, "norms", "streamed")
    assert counts == [graphs, 0]
    assert torch.equal(result, expected)
    result, *counts = run(class_name, "norms", "kernel", "streamed")
    assert counts == [graphs, 0]
    assert torch.allclose(result, expected, atol=1e-4)


def test_many_shapes_are_compiled_before_torch_gives_up() -> None:
    """torch's own limit is 8; a service of several sizes passes it soon."""
    model = find_model("WanTransformer3DModel")
    compile_blocks(build(model), backend="eager")
    assert torch._dynamo.config.recompile_limit >= MAX_GRAPHS_A_BLOCK
    assert torch._dynamo.config.accumulated_recompile_limit >= 2 * MAX_GRAPHS_A_BLOCK


def test_a_broken_graph_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def breaking(values: torch.Tensor) -> torch.Tensor:
        values = values + 1
        torch._dynamo.graph_break()
        return values * 2

    before = this_rank()
    torch.compile(breaking, backend="eager")(torch.ones(2))
    broken = this_rank()
    assert broken.num_graph_breaks == before.num_graph_breaks + 1
    assert broken.num_graphs > before.num_graphs
    watch = GraphWatch()
    with caplog.at_level(logging.INFO, logger="workers"):
        watch.report([RankStats(0, 1, 1, 0, 0, num_graphs=3), broken])
        watch.report([RankStats(0, 1, 1, 0, 0, num_graphs=3), broken])
    whole, warning = [record for record in caplog.records if record.name == "workers.compilation"]
    assert whole.getMessage() == "rank 0: compiled blocks: 3 graphs, none broken"
    assert f"rank 1: compiled blocks: {broken.num_graphs} graphs, broken" in warning.getMessage()
    assert broken.graph_break_reasons[0] in warning.getMessage()
    assert warning.levelno == logging.WARNING


def test_ranks_that_compiled_nothing_are_not_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="workers"):
        GraphWatch().report([RankStats(0, 1, 1, 0, 0), RankStats(1, 1, 1, 0, 0)])
    assert caplog.text == ""


def this_rank() -> RankStats:
    """What a follower of this process would tell the leader, as it arrives there."""
    return RankStats(1, 1, 1, **json.loads(json.dumps(measure_rank(weight_bytes_read=0))))


def test_kernels_are_compared_with_torchs_own_choice() -> None:
    assert find_problem(AttentionBackend.MATH, device=CPU, dtype=torch.float32, head_dim=64, with_mask=True) is None
    assert find_problem(AttentionBackend.CUDNN, device=CPU, dtype=torch.bfloat16, head_dim=64, with_mask=True)


def test_a_kernel_with_another_result_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from workers import attention_kernels

    right = attention_kernels._attend

    def wrong(query: Any, key: Any, value: Any, mask: Any, name: Any) -> torch.Tensor:
        mask = None if "math" in name.value else mask  # a kernel that ignores masks
        return right(query, key, value, mask, name)

    monkeypatch.setattr(attention_kernels, "_attend", wrong)
    problem = find_problem(AttentionBackend.MATH, device=CPU, dtype=torch.float32, head_dim=64, with_mask=True)
    assert problem is not None
    assert "with a mask differs by" in problem


def test_masks_matter_to_models_that_take_them_unless_the_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    from workers import attention_kernels

    tried: list[bool] = []
    monkeypatch.setattr(attention_kernels, "find_problem", lambda *_, with_mask, **__: tried.append(with_mask))
    both = [AttentionBackend.FLASH, AttentionBackend.NATIVE]
    for class_name, wanted in [(MODELS[0], both), (MODELS[2], both), (MODELS[2], both[:1])]:
        choose_attention_kernel(build(find_model(class_name)), wanted, device=CPU, dtype=torch.float32)
    assert tried == [False, True, False]


def test_a_chosen_kernel_is_not_the_processs_default() -> None:
    """Autoencoders with wide heads follow the default, and cuDNN would refuse them."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    before = _AttentionBackendRegistry.get_active_backend()[0]
    module = build(find_model("WanTransformer3DModel"))
    choose_attention_kernel(module, [AttentionBackend.MATH], device=CPU, dtype=torch.float32)
    assert _AttentionBackendRegistry.get_active_backend()[0] is before


def test_compiled_code_is_kept_in_the_users_cache_folder(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    assert keep_compiled_code(environment) == tmp_path / "heliograph" / "compiled"
    assert environment["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "heliograph" / "compiled")
    assert keep_compiled_code({"TORCHINDUCTOR_CACHE_DIR": "/somewhere"}) == Path("/somewhere")


def test_the_cache_folder_is_named_without_torch() -> None:
    import subprocess

    code = "import sys, workers.compile_cache; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
