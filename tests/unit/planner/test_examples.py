"""The example configs: planned on the hardware that they are written for, from headers of real sizes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.config_check import check_config
from deployments.settings import AppSettings
from planner.checkpoint import read_checkpoint
from planner.cluster import cluster_from_flags, cluster_from_yaml
from planner.plan import Plan, Residency
from planner.search import plan_group
from tests.tools.skeletons import write_skeleton

ROOT = Path(__file__).parents[3]
KUBERAY = ROOT / "examples" / "kuberay.yaml"


def settings_in(document: dict[str, Any]) -> AppSettings:
    (application,) = document["applications"]
    return AppSettings.model_validate(application["args"])


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_skeleton(tmp_path_factory.mktemp("wan"), "Wan2.2-T2V-A14B")


def plan_for(document: dict[str, Any], checkpoint: Path, **cluster: Any) -> Plan:
    return plan_group(read_checkpoint(checkpoint), cluster_from_flags(**cluster), settings_in(document).plan)


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "examples" / name).read_text())
    return document


def test_wan_a14b_has_a_plan_on_two_80_gb_gpus(wan: Path) -> None:
    plan = plan_for(read("wan2.2-a14b.yaml"), wan, gpus_per_node=2, gpu_type="H100", host_memory_gib=240)
    assert (plan.group.num_ranks, plan.group.cfg_degree) == (2, 2)
    assert max(plan.memory.gpu_peak_bytes) < plan.memory.gpu_capacity_bytes[0]


def test_flux_on_24_gb_is_streamed(tmp_path: Path) -> None:
    plan = plan_for(
        read("flux-24gb.yaml"),
        write_skeleton(tmp_path, "FLUX.1-dev"),
        gpus_per_node=1,
        gpu_memory_gib=22.5,
        host_memory_gib=64,
    )
    assert plan.components[0].residency is Residency.LAYERWISE


def test_two_models_have_a_plan_each_on_h100s_and_names_of_their_own(wan: Path, tmp_path: Path) -> None:
    settings = settings_in(read("two-models.yaml"))
    checkpoints = [write_skeleton(tmp_path, "FLUX.1-dev"), wan]
    cluster = cluster_from_flags(gpus_per_node=2, gpu_type="H100", host_memory_gib=240)
    plans = [
        plan_group(read_checkpoint(checkpoint), cluster, model.plan)
        for checkpoint, model in zip(checkpoints, settings.served_models, strict=True)
    ]
    assert [plan.group.num_ranks for plan in plans] == [1, 2]
    assert all(max(plan.memory.gpu_peak_bytes) < plan.memory.gpu_capacity_bytes[0] for plan in plans)
    assert [Path(model.checkpoint).name for model in settings.served_models] == [
        "FLUX.1-dev", "Wan2.2-T2V-A14B-Diffusers",
    ]  # fmt: skip
    assert len({model.served_name for model in settings.served_models}) == 2


@pytest.fixture
def rayservice() -> dict[str, Any]:
    _, document = yaml.safe_load_all(KUBERAY.read_text())
    assert document["kind"] == "RayService"
    return dict(document)


def test_kuberay_planner_knows_the_worker_pods_that_are_not_up(
    rayservice: dict[str, Any], wan: Path, tmp_path: Path
) -> None:
    config_map, _ = yaml.safe_load_all(KUBERAY.read_text())
    settings = settings_in(yaml.safe_load(rayservice["spec"]["serveConfigV2"]))
    head = rayservice["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    (mount,) = [m for m in head["containers"][0]["volumeMounts"] if m["name"] == "cluster"]
    (name,) = config_map["data"]
    assert settings.cluster_file == f"{mount['mountPath']}/{name}"
    (tmp_path / name).write_text(config_map["data"][name])
    cluster = cluster_from_yaml(tmp_path / name)
    (group,) = rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    (node,) = [node for node in cluster.node_types if node.name == group["groupName"]]
    assert node.count == group["maxReplicas"]
    assert (str(node.num_gpus), f"{node.num_cpus:g}") == (limits["nvidia.com/gpu"], limits["cpu"])
    assert f"{node.host_memory_bytes // 2**30}Gi" == limits["memory"]
    plan = plan_group(read_checkpoint(wan), cluster, settings.plan)
    assert (plan.device, plan.group.num_ranks) == ("cuda", 2)


def test_kuberay_config_is_clean(rayservice: dict[str, Any]) -> None:
    findings = check_config(yaml.safe_load(rayservice["spec"]["serveConfigV2"]))
    assert findings == []


def test_kuberay_head_has_the_files_that_the_settings_name(rayservice: dict[str, Any]) -> None:
    settings = settings_in(yaml.safe_load(rayservice["spec"]["serveConfigV2"]))
    head = rayservice["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    (container,) = head["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in head["volumes"]}
    assert settings.state.is_on_head
    assert {settings.state.folder, str(Path(settings.api_keys_file).parent)} <= set(mounts)


def test_kuberay_cluster_asks_for_the_token_and_one_version(rayservice: dict[str, Any]) -> None:
    cluster = rayservice["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    constraints = (ROOT / "constraints.txt").read_text()
    assert f"ray=={cluster['rayVersion']}" in constraints
    templates = [cluster["headGroupSpec"]["template"], *(g["template"] for g in cluster["workerGroupSpecs"])]
    assert len({container["image"] for t in templates for container in t["spec"]["containers"]}) == 1


def test_kuberay_worker_can_hold_the_plans_bundles(rayservice: dict[str, Any], wan: Path) -> None:
    limits = rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0][
        "resources"
    ]["limits"]
    memory_gib = int(limits["memory"].removesuffix("Gi"))
    plan = plan_for(
        yaml.safe_load(rayservice["spec"]["serveConfigV2"]), wan,
        gpus_per_node=int(limits["nvidia.com/gpu"]), gpu_type="H100", host_memory_gib=memory_gib,
    )  # fmt: skip
    assert sum(bundle.get("CPU", 0) for bundle in plan.group.bundles) <= int(limits["cpu"])
    assert plan.memory.host_peak_bytes < memory_gib * 2**30


def test_image_copies_only_what_is_there() -> None:
    copied = [line.split()[1:-1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY")]
    assert all((ROOT / source).exists() for sources in copied for source in sources)
