"""Nodes for Ray's autoscaler that are raylets on this machine, with memory among their resources."""

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class FakeNodes(FakeMultiNodeProvider):  # type: ignore[misc]
    """Ray's fake provider: the autoscaler must know of the memory that groups ask for, but a raylet takes none by name;
    it finds this machine's by itself."""

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> Any:
        """Called by the autoscaler for each node."""
        rest = {name: amount for name, amount in resources.items() if name != "memory"}
        return super().create_node_with_resources_and_labels(node_config, tags, count, rest, labels)
