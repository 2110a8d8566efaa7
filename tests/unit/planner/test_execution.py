"""Attention kernel, compilation, and what a rank may fall back to."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from planner.checkpoint import Checkpoint, read_checkpoint
from planner.cluster import GIB, Cluster, NodeType, cluster_from_flags
from planner.errors import InfeasiblePlanError, PlanRequestError
from planner.plan import AttentionBackend, Compilation, Decoding, Mode, PlanRequest, Residency, ResidencyChoice
from planner.search import plan_group
from tests.unit.planner.checkpoints import write_wan

CPU8 = Cluster((NodeType("cpu", 1, 8.0, 0, None, 0, 64 * GIB),), "test")
ONE_H100 = cluster_from_flags(gpus_per_node=1, gpu_type="H100")


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(str(write_wan(tmp_path_factory.mktemp("wan"))))


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A denoiser of 40 blocks of 256 MiB and a text encoder of 6 GiB; sparse files."""
    folder: Path = write_wan(tmp_path_factory.mktemp("big"), num_layers=40, width=8192, encoder_layers=24)
    return read_checkpoint(str(folder))


@pytest.mark.parametrize("mode", [Mode.SPEED, Mode.AUTO])
def test_gpus_get_compiled_blocks_and_the_fastest_kernel_first(wan: Checkpoint, mode: Mode) -> None:
    plan = plan_group(wan, ONE_H100, PlanRequest(mode=mode))
    assert plan.compile is Compilation.BLOCKS
    assert plan.attention_backends == (AttentionBackend.CUDNN, AttentionBackend.FLASH, AttentionBackend.NATIVE)


@pytest.mark.parametrize(("cluster", "mode"), [(ONE_H100, Mode.MEMORY), (CPU8, Mode.AUTO), (CPU8, Mode.SPEED)])
def test_elsewhere_nothing_is_compiled_and_torch_chooses(wan: Checkpoint, cluster: Cluster, mode: Mode) -> None:
    plan = plan_group(wan, cluster, PlanRequest(mode=mode))
    assert plan.compile is Compilation.NONE
    assert plan.attention_backends == (AttentionBackend.NATIVE,)


@pytest.mark.parametrize("cluster", [ONE_H100, CPU8])
def test_what_is_stated_wins(wan: Checkpoint, cluster: Cluster) -> None:
    stated = {"attention_backend": "flash", "compile": "none"}
    plan = plan_group(wan, cluster, PlanRequest.model_validate(stated))
    assert plan.attention_backends == (AttentionBackend.FLASH,)
    assert plan.compile is Compilation.NONE
    compiled = plan_group(wan, cluster, PlanRequest.model_validate({"compile": "blocks", "mode": "memory"}))
    assert compiled.compile is Compilation.BLOCKS


def test_cudnn_on_a_cpu_and_unknown_words_are_refused(wan: Checkpoint) -> None:
    with pytest.raises(PlanRequestError, match="cudnn needs a GPU"):
        plan_group(wan, CPU8, PlanRequest(attention_backend=AttentionBackend.CUDNN))
    with pytest.raises(ValidationError):
        PlanRequest.model_validate({"attention_backend": "fastest"})


def test_split_tokens_leave_the_kernel_to_torch_and_blocks_uncompiled(wan: Checkpoint) -> None:
    four = cluster_from_flags(gpus_per_node=4, gpu_type="H100")
    plan = plan_group(wan, four, PlanRequest(sequence_degree=2))
    assert plan.group.sequence_degree == 2
    assert plan.attention_backends == (AttentionBackend.NATIVE,)
    assert plan.compile is Compilation.NONE
    with pytest.raises(PlanRequestError, match="native or auto, or sequence_degree 1"):
        plan_group(wan, four, PlanRequest(sequence_degree=2, attention_backend=AttentionBackend.FLASH))
    stated = plan_group(wan, four, PlanRequest(num_ranks=4, cfg_degree=2, attention_backend=AttentionBackend.FLASH))
    assert stated.group.sequence_degree == 1


def test_fallbacks_pin_less_and_are_complete(big: Checkpoint) -> None:
    # Everything fits, but keeping the encoder away is asked for: what is left to fall back to pins nothing.
    request = PlanRequest(mode=Mode.MEMORY)
    plan = plan_group(big, cluster_from_flags(gpus_per_node=1, gpu_memory_gib=80, host_memory_gib=512), request)
    kinds = {component.name: component.residency for component in plan.components}
    assert kinds["transformer"] is Residency.LAYERWISE
    assert plan.fallbacks
    for fallback in plan.fallbacks:
        assert set(fallback) == set(kinds)
    resident = ResidencyChoice(residency=Residency.RESIDENT)
    assert any(fallback["transformer"] == resident for fallback in plan.fallbacks)


def test_a_plan_that_pins_nothing_has_nothing_to_fall_back_to(wan: Checkpoint) -> None:
    assert plan_group(wan, CPU8, PlanRequest()).fallbacks == ()
    assert plan_group(wan, ONE_H100, PlanRequest()).fallbacks == ()


# Decoding


@pytest.fixture(scope="module")
def hunyuan(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    pytest.importorskip("torch")
    from tests.tools.skeletons import write_skeleton

    return read_checkpoint(str(write_skeleton(tmp_path_factory.mktemp("hunyuan"), "HunyuanVideo")))


def h100(gib: int) -> Cluster:
    return cluster_from_flags(gpus_per_node=1, gpu_type="H100", gpu_memory_gib=gib, host_memory_gib=256)


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.MEMORY])
def test_tiles_are_taken_where_whole_frames_do_not_fit_and_the_plan_says_what_would_not(
    hunyuan: Checkpoint, mode: Mode
) -> None:
    plan = plan_group(hunyuan, h100(24), PlanRequest(mode=mode))
    assert plan.decoding is Decoding.TILES
    whole = [entry for entry in plan.rejected if "decoding in tiles" not in entry.option]
    assert any("GiB a GPU (decode)" in entry.reason for entry in whole)
    assert max(plan.memory.gpu_peak_bytes) < 23 * GIB


@pytest.mark.parametrize("mode", list(Mode))
def test_whole_frames_are_decoded_wherever_they_fit(hunyuan: Checkpoint, mode: Mode) -> None:
    assert plan_group(hunyuan, h100(80), PlanRequest(mode=mode)).decoding is Decoding.WHOLE


def test_stated_decoding_wins(hunyuan: Checkpoint) -> None:
    assert plan_group(hunyuan, h100(80), PlanRequest(decoding=Decoding.TILES)).decoding is Decoding.TILES
    with pytest.raises(InfeasiblePlanError, match="drop decoding=whole"):
        plan_group(hunyuan, h100(24), PlanRequest(decoding=Decoding.WHOLE))
