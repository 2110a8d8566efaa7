"""One rank as a Ray actor: a compute thread for everything that touches torch, other threads for control."""

import logging
import os
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import ray

from planner.plan import Plan
from workers.call_pace import CallDeadlines, CallPace
from workers.calls import GenerateCall, GenerateResult, GroupDescription, Preview, Progress
from workers.compile_cache import keep_compiled_code
from workers.errors import GroupDiedError, GroupStartError, WorkerError
from workers.freed_memory import give_freed_memory_back
from workers.library_imports import import_libraries
from workers.request_control import RunningRequest

if TYPE_CHECKING:
    from workers.calls import ComponentLoaded
    from workers.leader import Leader
    from workers.link import Link
    from workers.process_group import LeaderDoor
    from workers.rendezvous import Rendezvous

logger = logging.getLogger(__name__)


class RankActor:
    """A rank of a group. The coordinator calls, in this order on all ranks: `place`, `open_door` (leader only),
    `join`, `load`, then `follow` on followers and `lead` on the leader.

    Every method that touches torch runs on the one compute thread, so that thread-local settings hold and calls never
    interleave.
    """

    def __init__(self, plan_json: str, world_rank: int, num_threads: int) -> None:
        _quiet_libraries()
        os.environ["OMP_NUM_THREADS"] = str(num_threads)  # read by libraries when they are loaded: none is by now
        keep_compiled_code()
        self._plan = Plan.model_validate_json(plan_json)
        self._world_rank = world_rank
        self._num_threads = num_threads
        self._compute = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        # On all ranks at once, while the coordinator still asks where they are; what fails here fails again in `join`.
        self._compute.submit(import_libraries)
        self._door: LeaderDoor | None = None
        self._link: Link | None = None
        self._links: dict[int, Link] = {}
        self._timeout_s = 600.0
        self._checkpoint = ExitStack()  # keeps a fetched checkpoint in the node's cache until nothing reads it any more
        self._leader: Leader | None = None
        self._death: GroupDiedError | None = None
        self._waiting: set[queue.SimpleQueue[Any]] = set()
        self._request = RunningRequest()

    def place(self) -> tuple[str, str]:
        """This rank's node id and address."""
        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()

    def open_door(self, host: str, timeout_s: float) -> "Rendezvous":
        """Leader: opens the ports by which the followers join."""
        return self._compute.submit(self._open_door, host, timeout_s).result()

    def join(self, rendezvous: "Rendezvous | None", timeout_s: float) -> None:
        """Sets the device up and joins the process group and the control connections; None for a group of one."""
        self._compute.submit(self._join, rendezvous, timeout_s).result()

    def load(self) -> Iterator["ComponentLoaded"]:
        """Loads this rank's components, yielding each as it is in place."""
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        future = self._compute.submit(self._load, events.put)
        future.add_done_callback(lambda _: events.put(None))
        while (event := events.get()) is not None:
            yield event
        future.result()

    def lead(
        self, load_seconds: dict[str, float], weight_bytes_read: tuple[int, ...], deadlines: CallDeadlines
    ) -> GroupDescription:
        """Leader: builds the pipeline and says what the group can do."""
        return self._compute.submit(self._lead, load_seconds, weight_bytes_read, deadlines).result()

    def follow(self) -> None:
        """Follower: runs calls until the leader says goodbye. Ends with an error if the leader goes away."""
        self._compute.submit(self._follow).result()

    def generate(self, call: GenerateCall) -> Iterator[Progress | Preview | GenerateResult]:
        """Leader: runs one call; yields its progress, then its result."""
        leader = self._require_leader()
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._waiting.add(events)
        try:
            if self._death is not None:
                raise self._death
            future = self._compute.submit(leader.run, call, events.put)
            future.add_done_callback(lambda _: events.put(None))
            while (event := events.get()) is not None:
                if isinstance(event, GroupDiedError):
                    raise event
                yield event
            yield future.result()
        except GroupDiedError as error:
            self._death = error
            raise
        finally:
            self._waiting.discard(events)
            self._compute.submit(give_freed_memory_back)

    def cancel(self, request_id: str) -> None:
        """Ends a call at its next check, also where this rank is not the leader and works for it."""
        self._request.cancel(request_id)

    def ping(self) -> int:
        """Answers with the process id, also while a call runs; raises once the group is known to be dead."""
        if self._death is not None:
            raise self._death
        return os.getpid()

    def leave(self) -> None:
        """Leader: sends the followers home."""
        if self._leader is not None:
            self._compute.submit(self._leader.close).result()

    def _on_death(self, error: GroupDiedError) -> None:
        """The compute thread is stuck in a collective: those who wait for it are told here."""
        self._death = error
        for events in list(self._waiting):
            events.put(error)

    def _require_leader(self) -> "Leader":
        if self._leader is None:
            raise WorkerError("this rank does not lead a started group")
        return self._leader

    # What follows runs on the compute thread.

    def _open_door(self, host: str, timeout_s: float) -> "Rendezvous":
        from workers.process_group import LeaderDoor

        self._door = LeaderDoor(host, self._plan.group.num_ranks, timeout_s=timeout_s)
        return self._door.rendezvous

    def _join(self, rendezvous: "Rendezvous | None", timeout_s: float) -> None:
        import torch

        self._timeout_s = timeout_s
        if self._plan.device == "cuda":
            if not torch.cuda.is_available():
                raise GroupStartError(f"rank {self._world_rank} has no CUDA device, but the plan is for GPUs")
            torch.cuda.set_device(0)
        else:
            torch.set_num_threads(self._num_threads)
        if rendezvous is not None:
            self._connect(rendezvous, timeout_s)

    def _connect(self, rendezvous: "Rendezvous", timeout_s: float) -> None:
        from workers.link import Link
        from workers.process_group import join_process_group
        from workers.tensor_memory import SentTensors
        from workers.wire import connect

        store = None if self._door is None else self._door.store
        join_process_group(rendezvous, self._plan, world_rank=self._world_rank, store=store, timeout_s=timeout_s)
        if self._door is not None:
            wires = self._door.wires.accept(self._plan.group.num_ranks - 1, timeout_s=timeout_s)
            self._door.wires.close()
            self._links = {rank: Link(wire, self._route(rank), SentTensors()) for rank, wire in wires.items()}
        else:
            address = (rendezvous.host, rendezvous.wire_port)
            wire = connect(address, rendezvous.key, world_rank=self._world_rank, timeout_s=timeout_s)
            self._link = Link(wire, self._route(0))

    def _route(self, peer_rank: int) -> Any:
        import torch.distributed as dist

        from workers.link import TensorRoute

        uses_nccl = self._plan.device == "cuda" and not self._plan.group.share_gpu
        return TensorRoute(self._device(), dist.group.WORLD if uses_nccl else None, peer_rank)

    def _device(self) -> Any:
        import torch

        return torch.device("cuda", 0) if self._plan.device == "cuda" else torch.device("cpu")

    def _load(self, emit: Any) -> None:
        from workers.components import RankComponents, load_components
        from workers.fetch import open_checkpoint
        from workers.process_group import node_ranks, sequence_mesh, shard_mesh
        from workers.sequence import sequence_config

        folder = self._checkpoint.enter_context(open_checkpoint(self._plan.checkpoint, timeout_s=self._timeout_s))
        self._plan = self._plan.model_copy(update={"checkpoint": str(folder)})
        is_alone = self._plan.group.num_ranks == 1
        mesh = None if is_alone else shard_mesh(self._plan)
        split = None if is_alone else sequence_mesh(self._plan)
        node = None if is_alone else node_ranks(self._plan, world_rank=self._world_rank, timeout_s=self._timeout_s)
        self._components = RankComponents()
        for loaded in load_components(
            self._plan, self._components, world_rank=self._world_rank, device=self._device(), mesh=mesh,
            sequence=None if split is None else sequence_config(split), node=node,
        ):  # fmt: skip
            emit(loaded)

    def _lead(
        self, load_seconds: dict[str, float], weight_bytes_read: tuple[int, ...], deadlines: CallDeadlines
    ) -> GroupDescription:
        from workers.components import build_pipeline
        from workers.lanes import Lanes
        from workers.leader import Leader, local_components
        from workers.process_group import lane_layout

        local = local_components(self._plan, self._components)
        pace = CallPace(deadlines, predicted_step_s=self._plan.predicted.step_s)
        lanes = Lanes(lane_layout(self._plan), local=local, links=self._links, pace=pace, on_death=self._on_death)
        remote, stand_ins = self._stand_ins(lanes)
        pipeline = build_pipeline(self._plan, self._components, stand_ins=stand_ins)
        self._checkpoint.close()
        self._leader = Leader(
            pipeline, lanes, components=self._components, predicted_step_s=self._plan.predicted.step_s, remote=remote
        )
        return self._leader.describe(load_seconds=load_seconds, weight_bytes_read=weight_bytes_read)

    def _stand_ins(self, lanes: Any) -> tuple[Any, dict[str, Any]]:
        """What the leader's pipeline has in place of components that lie on other ranks."""
        from workers.remote_call import RemoteComponents
        from workers.stand_in import build_stand_ins

        remote = RemoteComponents(lanes, self._request, ranks=self._plan.ranks_of_remote_components())
        return remote, build_stand_ins(self._plan, device=self._device(), call=remote.call)

    def _follow(self) -> None:
        from workers.follower import follow
        from workers.leader import local_components
        from workers.rank_measurements import measure_rank
        from workers.remote_call import ServedEntries

        assert self._link is not None
        self._checkpoint.close()
        bytes_read = self._components.bytes_read
        served = [name for name in self._plan.ranks_of_remote_components() if name in self._components.modules]
        follow(
            self._link,
            components=ServedEntries(
                local_components(self._plan, self._components),
                {name: self._components.modules[name] for name in served},
                self._request,
            ),
            extra_stats=lambda: measure_rank(weight_bytes_read=bytes_read),
            on_start=self._components.start_request,
            on_end=give_freed_memory_back,
        )


def _quiet_libraries() -> None:
    """Our own stages at INFO, libraries at WARNING, no progress bars of theirs."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("workers").setLevel(logging.INFO)
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)
