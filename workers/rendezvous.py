"""Where the ranks of a group find each other. No torch here: it passes through the coordinator."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the followers find the leader. `key` is the group's secret."""

    host: str
    store_port: int
    wire_port: int
    key: bytes
