"""Plans for the live cluster and asks Ray for the group's bundles; says where they are. Run as a module.

python -m tests.serve.place_group GCS_ADDRESS CHECKPOINT MODE
"""

import json
import sys

import ray
from ray.util.placement_group import placement_group, placement_group_table

from planner.checkpoint import read_checkpoint
from planner.cluster import cluster_from_ray_nodes
from planner.plan import Mode, PlanRequest
from planner.search import plan_group

if __name__ == "__main__":
    address, checkpoint, mode = sys.argv[1:]
    ray.init(address=address, log_to_driver=False)
    live = [node for node in ray.nodes() if node["Alive"]]
    plan = plan_group(read_checkpoint(checkpoint), cluster_from_ray_nodes(live), PlanRequest(mode=Mode(mode)))
    selectors = plan.label_selectors()
    group = placement_group(list(plan.group.bundles), strategy=plan.group.strategy, bundle_label_selector=selectors)
    ray.get(group.ready(), timeout=60)
    of_node = {node["NodeID"]: node["Labels"] for node in live}
    placed = placement_group_table(group)["bundles_to_node_id"]
    labels = [of_node[placed[bundle]] for bundle in sorted(placed, key=int)]
    print(json.dumps({"selectors": selectors, "labels": labels}))
