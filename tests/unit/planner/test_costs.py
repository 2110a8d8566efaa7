"""The model of cost against calls measured on one H100 80GB (bf16, eager, random weights of the real architectures)."""

import pytest

from planner.checkpoint import Checkpoint, read_checkpoint
from planner.cluster import cluster_from_flags
from planner.costs import (
    call_seconds,
    denoiser_tokens,
    denoiser_work,
    knee,
    main_denoiser,
    resolve_workload,
    streaming_seconds,
)
from planner.hardware import find_gpu, gpu_names
from planner.plan import PlanRequest, ResidencyChoice
from planner.search import plan_group

pytest.importorskip("torch")
VIDEO = {"width": 832, "height": 480}
PICTURE = {"width": 1024, "height": 1024}


@pytest.fixture(scope="module")
def skeletons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    from tests.tools.skeletons import write_skeleton

    folder = tmp_path_factory.mktemp("skeletons")
    names = ("Wan2.1-T2V-1.3B", "Wan2.1-T2V-14B", "FLUX.1-dev", "Qwen-Image")
    return {name: read_checkpoint(str(write_skeleton(folder, name))) for name in names}


@pytest.mark.parametrize(
    ("name", "shapes", "compile", "measured_s"),
    [
        ("Wan2.1-T2V-1.3B", {**VIDEO, "num_frames": 81}, "none", 0.620),
        ("Wan2.1-T2V-14B", {**VIDEO, "num_frames": 81}, "none", 3.220),
        ("Wan2.1-T2V-14B", {**VIDEO, "num_frames": 17}, "none", 0.530),
        ("Wan2.1-T2V-14B", {**VIDEO, "num_frames": 9}, "none", 0.314),
        ("FLUX.1-dev", PICTURE, "none", 0.183),
        ("Qwen-Image", PICTURE, "none", 0.188),
        ("Wan2.1-T2V-1.3B", {**VIDEO, "num_frames": 81}, "blocks", 0.523),
        ("Wan2.1-T2V-14B", {**VIDEO, "num_frames": 81}, "blocks", 2.835),
        ("FLUX.1-dev", PICTURE, "blocks", 0.137),
        ("Qwen-Image", PICTURE, "blocks", 0.146),
    ],
)
def test_call_time_is_within_8_percent_of_the_measured(
    skeletons: dict[str, Checkpoint], name: str, shapes: dict[str, int], compile: str, measured_s: float
) -> None:
    checkpoint = skeletons[name]
    workload = resolve_workload(checkpoint, PlanRequest(**shapes))  # type: ignore[arg-type]
    denoiser, gpu = main_denoiser(checkpoint), find_gpu("H100")
    assert denoiser is not None
    assert gpu is not None
    work = denoiser_work(denoiser, checkpoint, workload, is_compiled=compile == "blocks")
    assert call_seconds(work, gpu) == pytest.approx(measured_s, rel=0.08)


@pytest.mark.parametrize(
    ("name", "frames", "tokens"),
    [("Wan2.1-T2V-14B", 81, 32760), ("Wan2.1-T2V-14B", 17, 7800), ("FLUX.1-dev", 1, 4096), ("Qwen-Image", 1, 4096)],
)
def test_tokens_of_a_latent(skeletons: dict[str, Checkpoint], name: str, frames: int, tokens: int) -> None:
    checkpoint = skeletons[name]
    shapes = {**VIDEO, "num_frames": frames} if frames > 1 else PICTURE
    denoiser = main_denoiser(checkpoint)
    assert denoiser is not None
    assert denoiser_tokens(denoiser, checkpoint, resolve_workload(checkpoint, PlanRequest(**shapes))) == tokens


@pytest.mark.parametrize(
    ("name", "shapes", "measured_gib"),
    [("Wan2.1-T2V-1.3B", {**VIDEO, "num_frames": 81}, 7.316), ("FLUX.1-dev", PICTURE, 24.744)],
)
def test_decoding_peak_is_within_2_percent_of_the_measured(
    skeletons: dict[str, Checkpoint], name: str, shapes: dict[str, int], measured_gib: float
) -> None:
    """Denoiser and autoencoder resident; text encoders were not there, so they are offloaded here."""
    offload = ResidencyChoice(residency="offload")  # type: ignore[arg-type]
    encoders = {c.name: offload for c in skeletons[name].components if c.name.startswith("text_encoder")}
    cluster = cluster_from_flags(gpus_per_node=1, gpu_type="H100", host_memory_gib=256)
    plan = plan_group(skeletons[name], cluster, PlanRequest(num_ranks=1, residency=encoders, **shapes))  # type: ignore[arg-type]
    peak = next(m.gpu_bytes[0] for m in plan.memory.timeline if m.stage == "decode")
    assert peak / 2**30 == pytest.approx(measured_gib, rel=0.02)


@pytest.mark.parametrize(
    ("shard_by", "compile", "measured_gib", "at_most_over"),
    [("parts", "none", 17.35, 0.04), ("blocks", "auto", 17.38, 0.1)],  # compiled blocks keep less than is counted
)
def test_peak_of_sharded_wan_14b_is_close_to_the_measured(
    skeletons: dict[str, Checkpoint], shard_by: str, compile: str, measured_gib: float, at_most_over: float
) -> None:
    """Two H200s, 81 frames, on the rank that holds the autoencoder too."""
    cluster = cluster_from_flags(gpus_per_node=2, gpu_type="H100", host_memory_gib=256)
    sharded = ResidencyChoice(residency="sharded", shard_by=shard_by)  # type: ignore[arg-type]
    degrees = {"num_ranks": 2, "cfg_degree": 1, "sequence_degree": 1, "fsdp_degree": 2}
    request = PlanRequest(residency={"transformer": sharded}, num_frames=81, compile=compile, **degrees, **VIDEO)  # type: ignore[arg-type]
    plan = plan_group(skeletons["Wan2.1-T2V-14B"], cluster, request)
    peaks = next(m.gpu_bytes for m in plan.memory.timeline if m.stage == "denoise")
    assert 1.0 <= min(peaks) / 2**30 / measured_gib <= 1.0 + at_most_over


@pytest.mark.parametrize(
    ("frames", "residency", "measured_gib"),
    [
        (81, "resident", 30.2),
        (81, "layerwise:0", 5.3),
        (17, "layerwise:0", 2.6),
        (9, "layerwise:0", 2.3),
        (9, "layerwise:10", 8.8),
        (9, "layerwise:20", 15.4),
    ],
)
def test_denoising_peak_of_wan_14b_is_close_to_the_measured(
    skeletons: dict[str, Checkpoint], frames: int, residency: str, measured_gib: float
) -> None:
    kind, _, k = residency.partition(":")
    choice = ResidencyChoice(residency=kind, num_resident_blocks=int(k) if k else None)  # type: ignore[arg-type]
    offload = ResidencyChoice(residency="offload")  # type: ignore[arg-type]
    request = PlanRequest(
        residency={"transformer": choice, "text_encoder": offload, "vae": offload},
        num_frames=frames,
        num_ranks=1,
        **VIDEO,
    )  # type: ignore[arg-type]
    cluster = cluster_from_flags(gpus_per_node=1, gpu_type="H100", host_memory_gib=256)
    plan = plan_group(skeletons["Wan2.1-T2V-14B"], cluster, request)
    peak = next(m.gpu_bytes[0] for m in plan.memory.timeline if m.stage == "denoise")
    assert peak / 2**30 == pytest.approx(measured_gib, rel=0.1, abs=0.35)


def test_streaming_hides_under_long_calls_and_not_under_short_ones() -> None:
    blocks = {"block_bytes": 703 * 10**6, "num_blocks": 40, "copy_gb_s": 53.0}
    assert streaming_seconds(compute_s=3.28, num_resident=0, **blocks) == pytest.approx(3.28 * 1.003, rel=0.01)  # type: ignore[arg-type]
    assert streaming_seconds(compute_s=0.32, num_resident=0, **blocks) == pytest.approx(0.32 * 1.66, rel=0.02)  # type: ignore[arg-type]
    assert streaming_seconds(compute_s=0.32, num_resident=10, **blocks) == pytest.approx(0.32 * 1.26, rel=0.02)  # type: ignore[arg-type]
    assert streaming_seconds(compute_s=0.32, num_resident=20, **blocks) == pytest.approx(0.32 * 1.02, rel=0.03)  # type: ignore[arg-type]


@pytest.mark.parametrize("compute_s", [0.01, 0.1, 0.32, 0.5, 3.28])
def test_knee_is_the_fewest_blocks_that_hide_copying(compute_s: float) -> None:
    blocks = {"block_bytes": 703 * 10**6, "num_blocks": 40, "copy_gb_s": 53.0}
    k = knee(compute_s=compute_s, **blocks)  # type: ignore[arg-type]
    copy_s = 703e6 / 53e9
    assert (40 - k) * copy_s <= compute_s
    assert k == 0 or (40 - k + 1) * copy_s > compute_s


def test_explicit_layerwise_without_k_is_the_knee(skeletons: dict[str, Checkpoint]) -> None:
    choice = {"transformer": ResidencyChoice(residency="layerwise")}  # type: ignore[arg-type]
    cluster = cluster_from_flags(gpus_per_node=1, gpu_type="H100", host_memory_gib=256)
    found = {}
    for frames in (1, 9, 81):
        request = PlanRequest(residency=choice, num_frames=frames, num_ranks=1, **VIDEO)  # type: ignore[arg-type]
        plan = plan_group(skeletons["Wan2.1-T2V-14B"], cluster, request)
        found[frames] = next(c.num_resident_blocks for c in plan.components if c.name == "transformer")
    assert found[81] == 0 < found[9] < found[1]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100-80G"),
        ("NVIDIA A100-SXM4-40GB", "A100-40G"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("Tesla T4", "T4"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA H200", "H200"),
        ("h100", "H100"),
        ("A100", "A100-40G"),
    ],
)
def test_product_names(product: str, name: str) -> None:
    gpu = find_gpu(product)
    assert gpu is not None
    assert gpu.name == name


def test_every_gpu_says_where_its_figures_are_from() -> None:
    for name in gpu_names():
        gpu = find_gpu(name)
        assert gpu is not None
        assert gpu.source
