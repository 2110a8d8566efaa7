"""Plans: degrees, bundles, residency, explicit choices, and properties over many inputs."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.checkpoint import Checkpoint, read_checkpoint
from planner.cluster import GIB, Cluster, NodeType, cluster_from_flags
from planner.errors import InfeasiblePlanError, PlanRequestError, UnsafeCheckpointError
from planner.memory import gpu_headroom_bytes, host_headroom_bytes
from planner.plan import Decoding, InfeasibleReport, Mode, Plan, PlanRequest, Residency, ResidencyChoice
from planner.search import plan_group
from tests.unit.planner.checkpoints import write_json, write_wan

CPU8 = Cluster((NodeType("cpu", 1, 8.0, 0, None, 0, 64 * GIB),), "test")
SHAPES = {"width": 64, "height": 64, "num_frames": 1, "num_inference_steps": 4}


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(str(write_wan(tmp_path_factory.mktemp("wan"))))


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Two denoisers of 40 blocks of 256 MiB (10 GiB each) and a text encoder of 6 GiB; sparse."""
    folder = write_wan(
        tmp_path_factory.mktemp("big"), num_layers=40, width=8192, two_transformers=True, encoder_layers=24
    )
    return read_checkpoint(str(folder))


def gpus(count: int, gib: float, *, nodes: int = 1, host_gib: float = 512) -> Cluster:
    return cluster_from_flags(gpus_per_node=count, gpu_memory_gib=gib, num_nodes=nodes, host_memory_gib=host_gib)


def gpu_peak(plan: Plan) -> int:
    return max(plan.memory.gpu_peak_bytes)


def residency(plan: Plan) -> dict[str, Residency]:
    return {component.name: component.residency for component in plan.components}


def choose(**choices: str) -> dict[str, ResidencyChoice]:
    parsed = {}
    for name, text in choices.items():
        kind, _, k = text.partition(":")
        parsed[name] = ResidencyChoice(residency=Residency(kind), num_resident_blocks=int(k) if k else None)
    return parsed


# CPU groups


def test_cpu_group_has_one_rank_everything_resident_in_float32(wan: Checkpoint) -> None:
    plan = plan_group(wan, CPU8, PlanRequest())
    assert (plan.device, plan.dtype, plan.group.num_ranks, plan.group.strategy) == ("cpu", "float32", 1, "STRICT_PACK")
    assert [bundle["CPU"] for bundle in plan.group.bundles] == [0.1, 1.0]
    assert sum(bundle["memory"] for bundle in plan.group.bundles) == plan.memory.host_peak_bytes
    assert set(residency(plan).values()) == {Residency.RESIDENT}
    assert plan.memory.gpu_peak_bytes == (0,)
    assert plan.memory.host_peak_bytes > plan.payload_bytes


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        ({"num_ranks": 2}, (2, 2, 1, 1)),
        ({"num_ranks": 3}, (3, 1, 1, 3)),
        ({"num_ranks": 4}, (4, 2, 1, 4)),
        ({"cfg_degree": 2}, (2, 2, 1, 1)),
        ({"cfg_degree": 2, "num_ranks": 4}, (4, 2, 1, 4)),
        ({"cfg_degree": 2, "fsdp_degree": 4}, (4, 2, 1, 4)),
        ({"cfg_degree": 2, "fsdp_degree": 2}, (2, 2, 1, 2)),
        ({"cfg_degree": 2, "sequence_degree": 2}, (4, 2, 2, 1)),
        ({"fsdp_degree": 2}, (2, 1, 1, 2)),
        ({"fsdp_degree": 2, "num_ranks": 2}, (2, 1, 1, 2)),
        ({"num_ranks": 1}, (1, 1, 1, 1)),
    ],
)
def test_degrees_combine(wan: Checkpoint, degrees: dict[str, int], expected: tuple[int, ...]) -> None:
    group = plan_group(wan, CPU8, PlanRequest(**degrees)).group  # type: ignore[arg-type]
    assert (group.num_ranks, group.cfg_degree, group.sequence_degree, group.fsdp_degree) == expected
    assert len(group.bundles) == 1 + group.num_ranks


@pytest.mark.parametrize(
    "degrees",
    [
        {"num_ranks": 3, "cfg_degree": 2},
        {"num_ranks": 8, "cfg_degree": 2, "fsdp_degree": 4},
        {"cfg_degree": 3, "fsdp_degree": 4},
    ],
)
def test_contradicting_degrees_are_refused(wan: Checkpoint, degrees: dict[str, int]) -> None:
    with pytest.raises(PlanRequestError, match="do not combine"):
        plan_group(wan, CPU8, PlanRequest(**degrees))  # type: ignore[arg-type]


def test_denoiser_lies_on_all_ranks_and_the_rest_on_the_leader(wan: Checkpoint) -> None:
    ranks = {c.name: c.ranks for c in plan_group(wan, CPU8, PlanRequest(cfg_degree=2)).components}
    assert ranks == {"transformer": (0, 1), "text_encoder": (0,), "vae": (0,)}


def test_fsdp_shards_the_denoiser_on_all_ranks(wan: Checkpoint) -> None:
    plan = plan_group(wan, CPU8, PlanRequest(fsdp_degree=2))
    assert residency(plan)["transformer"] is Residency.SHARDED
    assert residency(plan)["text_encoder"] is Residency.RESIDENT


def test_sharded_text_encoder_lies_on_all_ranks(wan: Checkpoint) -> None:
    plan = plan_group(wan, CPU8, PlanRequest(fsdp_degree=2, residency=choose(text_encoder="sharded")))
    assert next(c for c in plan.components if c.name == "text_encoder").ranks == (0, 1)


def test_ranks_share_the_cpus_of_a_small_machine(wan: Checkpoint) -> None:
    small = Cluster((NodeType("small", 1, 2.0, 0, None, 0, 16 * GIB),), "test")
    bundles = plan_group(wan, small, PlanRequest(cfg_degree=2)).group.bundles
    assert sum(bundle["CPU"] for bundle in bundles) <= 2.0
    assert bundles[1] == bundles[2]


def test_stated_cpus_per_rank(wan: Checkpoint) -> None:
    assert plan_group(wan, CPU8, PlanRequest(cpus_per_rank=3)).group.bundles[1]["CPU"] == 3.0
    with pytest.raises(InfeasiblePlanError, match="9 CPUs"):
        plan_group(wan, CPU8, PlanRequest(cpus_per_rank=9))


@pytest.mark.parametrize("kind", ["layerwise", "offload"])
def test_streaming_on_a_cpu_is_refused_with_the_reason(wan: Checkpoint, kind: str) -> None:
    with pytest.raises(InfeasiblePlanError, match="on a CPU weights already live in host memory") as caught:
        plan_group(wan, CPU8, PlanRequest(residency=choose(transformer=kind)))
    report = InfeasibleReport.model_validate_json(caught.value.report_json)
    assert f"transformer={kind}" in report.message


def test_host_memory_is_the_budget_of_a_cpu_group(big: Checkpoint) -> None:
    with pytest.raises(InfeasiblePlanError, match="of host memory a node"):
        plan_group(big, Cluster((NodeType("cpu", 1, 8.0, 0, None, 0, 32 * GIB),), "test"), PlanRequest())
    assert plan_group(big, Cluster((NodeType("cpu", 1, 8.0, 0, None, 0, 128 * GIB),), "test"), PlanRequest())


# GPUs


def test_gpu_bundles(wan: Checkpoint) -> None:
    plan = plan_group(wan, gpus(2, 24), PlanRequest(cfg_degree=2))
    assert (plan.device, plan.dtype) == ("cuda", "bfloat16")
    assert [(bundle["CPU"], bundle.get("GPU")) for bundle in plan.group.bundles] == [(0.1, None), (0.1, 1), (0.1, 1)]


def test_shared_gpu_takes_fractions_and_a_share_of_the_memory(wan: Checkpoint) -> None:
    plan = plan_group(wan, gpus(1, 24), PlanRequest(cfg_degree=2, share_gpu=True))
    assert plan.group.bundles[1]["GPU"] == 0.5
    assert plan.memory.gpu_capacity_bytes == (12 * GIB, 12 * GIB)
    assert plan.group.share_gpu


def test_two_lanes_are_taken_where_a_node_has_two_gpus(big: Checkpoint) -> None:
    assert plan_group(big, gpus(2, 80), PlanRequest(**SHAPES)).group.cfg_degree == 2  # type: ignore[arg-type]
    assert plan_group(big, gpus(1, 80), PlanRequest(**SHAPES)).group.num_ranks == 1  # type: ignore[arg-type]


def test_lanes_are_not_taken_where_guidance_is_embedded(tmp_path: Path) -> None:
    folder = write_wan(tmp_path)
    write_json(folder / "transformer" / "config.json", {"guidance_embeds": True})
    assert plan_group(read_checkpoint(str(folder)), gpus(2, 80), PlanRequest()).group.num_ranks == 1


def test_group_larger_than_any_node_is_refused_or_spans(wan: Checkpoint) -> None:
    with pytest.raises(InfeasiblePlanError, match="4 ranks are needed"):
        plan_group(wan, gpus(2, 80), PlanRequest(num_ranks=4))
    plan = plan_group(wan, gpus(2, 80, nodes=2), PlanRequest(num_ranks=4))
    assert plan.group.strategy == "PACK"


def test_speed_keeps_everything_resident_or_refuses(big: Checkpoint) -> None:
    plan = plan_group(big, gpus(1, 80), PlanRequest(mode=Mode.SPEED, **SHAPES))  # type: ignore[arg-type]
    assert set(residency(plan).values()) == {Residency.RESIDENT}
    with pytest.raises(InfeasiblePlanError, match=r"needs .* GiB a GPU.* available"):
        plan_group(big, gpus(1, 24), PlanRequest(mode=Mode.SPEED, **SHAPES))  # type: ignore[arg-type]


def test_auto_streams_what_does_not_fit_and_keeps_all_that_does(big: Checkpoint) -> None:
    plan = plan_group(big, gpus(1, 24), PlanRequest(**SHAPES))  # type: ignore[arg-type]
    layerwise = [c for c in plan.components if c.residency is Residency.LAYERWISE]
    assert layerwise
    assert sum(c.num_resident_blocks or 0 for c in layerwise) > 0
    block = 8192 * 8192 * 2 * 2
    assert 24 * GIB - gpu_headroom_bytes(24 * GIB) - gpu_peak(plan) < 2 * block


def test_memory_mode_keeps_no_block(big: Checkpoint) -> None:
    plan = plan_group(big, gpus(1, 80), PlanRequest(mode=Mode.MEMORY, **SHAPES))  # type: ignore[arg-type]
    assert {c.num_resident_blocks for c in plan.components if c.residency is Residency.LAYERWISE} == {0}
    assert gpu_peak(plan) < 4 * GIB


def test_explicit_k_is_k(big: Checkpoint) -> None:
    for mode in Mode:
        request = PlanRequest(mode=mode, residency=choose(transformer="layerwise:7"), **SHAPES)  # type: ignore[arg-type]
        component = next(c for c in plan_group(big, gpus(1, 80), request).components if c.name == "transformer")
        assert (component.residency, component.num_resident_blocks) == (Residency.LAYERWISE, 7)
        assert "as stated" in component.reason


@pytest.mark.parametrize("mode", list(Mode))
def test_forbidden_residency_is_never_chosen(big: Checkpoint, mode: Mode) -> None:
    forbid = {name: (Residency.LAYERWISE,) for name in ("transformer", "transformer_2")}
    plan = plan_group(big, gpus(1, 80), PlanRequest(mode=mode, forbid=forbid, **SHAPES))  # type: ignore[arg-type]
    assert Residency.LAYERWISE not in {residency(plan)["transformer"], residency(plan)["transformer_2"]}


def test_explicit_choices_that_cannot_fit_are_named_with_numbers_and_ways_out(big: Checkpoint) -> None:
    stated = PlanRequest(residency=choose(transformer="resident", transformer_2="resident"), **SHAPES)  # type: ignore[arg-type]
    with pytest.raises(InfeasiblePlanError) as caught:
        plan_group(big, gpus(1, 16), stated)
    message = str(caught.value)
    assert "transformer=resident" in message
    assert "needs" in message
    assert "available" in message
    assert message.partition("Ways out: ")[2].count(";") >= 1


def test_explicit_fsdp_and_layerwise_contradict(big: Checkpoint) -> None:
    with pytest.raises(InfeasiblePlanError, match="the ranks share the denoiser"):
        plan_group(big, gpus(2, 80), PlanRequest(fsdp_degree=2, residency=choose(transformer="layerwise"), **SHAPES))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "offence"),
    [
        ({"residency": choose(dit="resident")}, "no component"),
        ({"forbid": {"dit": (Residency.OFFLOAD,)}}, "no component"),
        (
            {"residency": choose(vae="resident"), "forbid": {"vae": (Residency.RESIDENT,)}},
            "both asked for and forbidden",
        ),
        ({"residency": choose(transformer="layerwise:99")}, "40 blocks"),
        ({"residency": choose(transformer="resident:3")}, "only layerwise"),
        ({"device": "cpu", "share_gpu": True}, "share_gpu"),
    ],
)
def test_contradicting_request_is_refused(big: Checkpoint, changes: dict[str, object], offence: str) -> None:
    with pytest.raises(PlanRequestError, match=offence):
        plan_group(big, gpus(1, 80), PlanRequest(**changes))  # type: ignore[arg-type]


def test_cuda_without_a_gpu_is_refused(wan: Checkpoint) -> None:
    with pytest.raises(PlanRequestError, match="no node has a GPU"):
        plan_group(wan, CPU8, PlanRequest(device="cuda"))


def test_vae_is_not_cut_into_blocks(wan: Checkpoint) -> None:
    with pytest.raises(InfeasiblePlanError, match="only denoisers and text encoders"):
        plan_group(wan, gpus(1, 80), PlanRequest(residency=choose(vae="layerwise")))


def test_pickled_weights_are_not_planned(tmp_path: Path) -> None:
    folder = write_wan(tmp_path)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(folder / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(UnsafeCheckpointError):
        plan_group(read_checkpoint(str(folder)), CPU8, PlanRequest())


def test_host_memory_counts_streamed_weights(big: Checkpoint) -> None:
    request = PlanRequest(mode=Mode.MEMORY, num_ranks=1, **SHAPES)  # type: ignore[arg-type]
    assert plan_group(big, gpus(1, 24, host_gib=64), request).memory.host_peak_bytes > 20 * GIB
    with pytest.raises(InfeasiblePlanError) as caught:
        plan_group(big, gpus(1, 12, host_gib=16), request)
    rejected = InfeasibleReport.model_validate_json(caught.value.report_json).rejected
    assert any("transformer=layerwise:0" in r.option and "of host memory a node" in r.reason for r in rejected)


def test_rejected_alternatives_carry_the_numbers(big: Checkpoint) -> None:
    rejected = plan_group(big, gpus(1, 24), PlanRequest(**SHAPES)).rejected  # type: ignore[arg-type]
    assert any("transformer=resident" in r.option and "GiB a GPU" in r.reason for r in rejected)
    assert any("a request takes" in r.reason for r in rejected)


def test_error_survives_pickling(big: Checkpoint) -> None:
    import pickle

    with pytest.raises(InfeasiblePlanError) as caught:
        plan_group(big, gpus(1, 1), PlanRequest(**SHAPES))  # type: ignore[arg-type]
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.report_json) == (str(caught.value), caught.value.report_json)
    assert json.loads(again.report_json)["feasible"] is False


def test_same_input_same_plan_to_the_byte(big: Checkpoint) -> None:
    plans = {plan_group(big, gpus(2, 40), PlanRequest(**SHAPES)).model_dump_json() for _ in range(3)}  # type: ignore[arg-type]
    assert len(plans) == 1


def test_fingerprint_does_not_depend_on_the_place(tmp_path: Path) -> None:
    one, two = (read_checkpoint(str(write_wan(tmp_path / name))) for name in ("a", "b"))
    assert plan_group(one, CPU8, PlanRequest()).fingerprint == plan_group(two, CPU8, PlanRequest()).fingerprint


# Properties

REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from(list(Mode)),
        "num_ranks": st.sampled_from([1, 2, 3, 4]),
        "cfg_degree": st.sampled_from([1, 2]),
        "fsdp_degree": st.sampled_from([1, 2, 4]),
        "residency": st.dictionaries(
            st.sampled_from(["transformer", "transformer_2", "text_encoder", "vae"]),
            st.sampled_from(list(Residency)).map(lambda r: ResidencyChoice(residency=r)),
            max_size=2,
        ),
        "forbid": st.dictionaries(
            st.sampled_from(["transformer", "text_encoder", "vae"]),
            st.tuples(st.sampled_from(list(Residency))),
            max_size=2,
        ),
        "prefetch_depth": st.integers(1, 3),
        "batch_size": st.integers(1, 3),
    },
)


def try_plan(checkpoint: Checkpoint, cluster: Cluster, request: PlanRequest) -> Plan | None:
    try:
        return plan_group(checkpoint, cluster, request)
    except (InfeasiblePlanError, PlanRequestError):
        return None


@given(REQUESTS, st.sampled_from([6, 16, 24, 40, 80]), st.sampled_from([1, 2, 4]), st.sampled_from([32, 96, 512]))
@settings(max_examples=80, deadline=None)
def test_every_plan_is_consistent_and_within_budget(
    big: Checkpoint, changes: dict[str, object], gib: int, count: int, host_gib: int
) -> None:
    request = PlanRequest(**{**SHAPES, **changes})  # type: ignore[arg-type]
    plan = try_plan(big, gpus(count, gib, host_gib=host_gib), request)
    if plan is None:
        return
    group = plan.group
    assert group.num_ranks == max(group.cfg_degree * group.sequence_degree, group.fsdp_degree) == len(group.bundles) - 1
    assert plan.payload_bytes == sum(c.payload_bytes for c in plan.components) == big.payload_bytes
    assert [c.load_order for c in plan.components] == list(range(len(plan.components)))
    assert sum(bundle.get("GPU", 0) for bundle in group.bundles) == group.num_ranks <= count
    assert sum(bundle["CPU"] for bundle in group.bundles) <= max(8, 8 * count)
    assert plan.memory.host_peak_bytes <= sum(bundle["memory"] for bundle in group.bundles) <= host_gib * GIB
    budget = gib * GIB - gpu_headroom_bytes(gib * GIB)
    host_budget = host_gib * GIB - host_headroom_bytes(host_gib * GIB)
    for moment in plan.memory.timeline:
        assert len(moment.gpu_bytes) == group.num_ranks
        assert max(moment.gpu_bytes) <= budget
        assert moment.host_bytes <= host_budget
    chosen = residency(plan)
    for name, choice in request.residency.items():
        assert chosen[name] is choice.residency
    for name, forbidden in request.forbid.items():
        assert chosen[name] not in forbidden


def plan_or_refusal(checkpoint: Checkpoint, cluster: Cluster, request: PlanRequest) -> tuple[Plan | None, str]:
    try:
        return plan_group(checkpoint, cluster, request), ""
    except InfeasiblePlanError as error:
        return None, str(error)


CHOICES = st.dictionaries(
    st.sampled_from(["transformer", "transformer_2", "text_encoder"]),
    st.sampled_from(["resident", "offload", "layerwise", "layerwise:0", "layerwise:11", "sharded"]),
    min_size=1,
    max_size=3,
)
DEGREES = st.fixed_dictionaries(
    {}, optional={"cfg_degree": st.sampled_from([1, 2]), "fsdp_degree": st.sampled_from([1, 2])}
)


@given(CHOICES, DEGREES, st.sampled_from([16, 40, 80]))
@settings(max_examples=40, deadline=None)
def test_explicit_choices_survive_every_mode(
    big: Checkpoint, choices: dict[str, str], degrees: dict[str, int], gib: int
) -> None:
    stated = choose(**choices)
    for mode in Mode:
        request = PlanRequest(mode=mode, residency=stated, **degrees, **SHAPES)  # type: ignore[arg-type]
        plan, refusal = plan_or_refusal(big, gpus(2, gib), request)
        if plan is None:
            # A refusal names what was asked for; it is not replaced by something else.
            assert all(f"{name}={text}" in refusal for name, text in choices.items())
            assert refusal.partition("Ways out: ")[2].count(";") >= 1
            continue
        for component in plan.components:
            if (choice := stated.get(component.name)) is not None:
                assert component.residency is choice.residency
                if choice.num_resident_blocks is not None:
                    assert component.num_resident_blocks == choice.num_resident_blocks
        group = plan.group
        assert group.num_ranks == max(group.cfg_degree * group.sequence_degree, group.fsdp_degree)
        assert group.num_ranks % group.fsdp_degree == group.num_ranks % group.cfg_degree == 0
        for name, degree in degrees.items():
            assert getattr(group, name) == degree


def test_ways_out_that_are_named_are_ways_out(big: Checkpoint) -> None:
    stated = choose(transformer="resident", transformer_2="resident")
    with pytest.raises(InfeasiblePlanError) as caught:
        plan_group(big, gpus(1, 20), PlanRequest(residency=stated, num_ranks=1, **SHAPES))  # type: ignore[arg-type]
    message = str(caught.value)
    assert "drop transformer=resident (needs " in message
    for dropped in stated:
        kept = {name: choice for name, choice in stated.items() if name != dropped}
        assert plan_group(big, gpus(1, 20), PlanRequest(residency=kept, num_ranks=1, **SHAPES)).feasible  # type: ignore[arg-type]
    enough = int(message.partition("GPUs of at least ")[2].partition(" ")[0])
    assert plan_group(big, gpus(1, enough), PlanRequest(residency=stated, num_ranks=1, **SHAPES)).feasible  # type: ignore[arg-type]
    with pytest.raises(InfeasiblePlanError):
        plan_group(big, gpus(1, enough - 1), PlanRequest(residency=stated, num_ranks=1, **SHAPES))  # type: ignore[arg-type]


def test_larger_memory_of_the_same_type_is_preferred_over_the_search_growing(big: Checkpoint) -> None:
    types = tuple(
        NodeType(f"n{gib}", 1, 64.0, 1, "H100", gib * GIB, 512 * GIB, memory_label=str(gib)) for gib in (24, 80, 40)
    )
    plan = plan_group(big, Cluster(types, "test"), PlanRequest(num_ranks=1, **SHAPES))  # type: ignore[arg-type]
    assert plan.memory.gpu_capacity_bytes == (80 * GIB,)


@given(st.sampled_from([1, 2, 4]), st.integers(4, 90), st.integers(0, 40))
@settings(max_examples=30, deadline=None)
def test_more_memory_never_makes_a_plan_slower(big: Checkpoint, count: int, gib: int, more: int) -> None:
    cluster = lambda size: cluster_from_flags(  # noqa: E731
        gpus_per_node=count, gpu_type="H100", gpu_memory_gib=size, host_memory_gib=512
    )
    small = try_plan(big, cluster(gib), PlanRequest(**SHAPES))  # type: ignore[arg-type]
    large = try_plan(big, cluster(gib + more), PlanRequest(**SHAPES))  # type: ignore[arg-type]
    if small is not None:
        assert large is not None
        assert small.predicted.request_s is not None
        assert large.predicted.request_s is not None
        assert large.predicted.request_s <= small.predicted.request_s + 1e-4  # seconds are rounded to 0.1 ms


@given(st.sampled_from([1, 2, 4]), st.integers(3, 90))
@settings(max_examples=30, deadline=None)
def test_memory_mode_never_peaks_higher_than_auto(big: Checkpoint, count: int, gib: int) -> None:
    auto = try_plan(big, gpus(count, gib), PlanRequest(**SHAPES))  # type: ignore[arg-type]
    least = try_plan(big, gpus(count, gib), PlanRequest(mode=Mode.MEMORY, **SHAPES))  # type: ignore[arg-type]
    if auto is not None:
        assert least is not None
        assert gpu_peak(least) <= gpu_peak(auto) <= gib * GIB


def test_an_autoencoder_that_decodes_in_tiles_only_is_planned_so(tmp_path: Path) -> None:
    write_wan(tmp_path, extra={"vae": ["diffusers", "AutoencoderKLAllegro"]})
    checkpoint = read_checkpoint(str(tmp_path))
    cluster = cluster_from_flags(gpus_per_node=1, gpu_memory_gib=80)
    assert plan_group(checkpoint, cluster, PlanRequest()).decoding is Decoding.TILES
    with pytest.raises(PlanRequestError, match="AutoencoderKLAllegro decodes in tiles only"):
        plan_group(checkpoint, cluster, PlanRequest(decoding=Decoding.WHOLE))
