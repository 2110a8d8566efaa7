"""A follower's loop: gets messages from the leader, runs component calls, answers."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from workers.component_call import CacheContext, ComponentCall, LocalComponent, count_work
from workers.encoding import decode_tree, flatten
from workers.lanes import describe_error
from workers.link import Link, Received
from workers.out_of_memory import free_memory_of, is_out_of_memory

logger = logging.getLogger(__name__)
SEND_TIMEOUT_S = 600.0


def follow(
    link: Link,
    *,
    components: Mapping[str, LocalComponent],
    extra_stats: Callable[[], dict[str, Any]],
    on_start: Callable[[], None] = lambda: None,
    on_end: Callable[[], object] = lambda: None,
) -> None:
    """Runs until the leader says goodbye; raises `GroupDiedError` if the leader goes away.

    `on_start` is called when a request begins, `on_end` when one has come to its result.

    Idle time has no limit: a deadline starts with a message. A call that fails is answered with the error, and the
    loop goes on.
    """
    with torch.no_grad(), contextlib.closing(link.wire):  # whatever ends the loop, the leader sees it at once
        while True:
            message = link.receive(timeout_s=None)
            match message.header["op"]:
                case "call":
                    _run_call(link, message, components)
                case "start":
                    link.forget()
                    for component in components.values():
                        component.start_request()
                    on_start()
                case "configure":
                    module: Any = components[message.header["component"]].module
                    module.register_to_config(**message.value)
                case "stats":
                    counts = {**count_work(components.values()), **extra_stats()}
                    link.send({"op": "stats", "stats": counts}, timeout_s=SEND_TIMEOUT_S)
                    on_end()
                case "bye":
                    return


def _run_call(link: Link, message: Received, components: Mapping[str, LocalComponent]) -> None:
    header, tensors = message.header, message.tensors
    call_id, name, wants = header["id"], header["component"], header["wants"]
    reply, output = {"op": "done", "id": call_id}, None
    try:
        args, kwargs = message.value
        context = None if header["context"] is None else CacheContext(*decode_tree(header["context"], []))
        call = ComponentCall(name, args, kwargs, context)
        if wants == "nothing":
            components[name].run_and_drop(call)
        else:
            versions = [tensor._version for tensor in tensors]
            result = components[name].run(call)
            if versions != [tensor._version for tensor in tensors]:
                raise RuntimeError("the model wrote to its arguments, which other ranks still hold unchanged")
            if wants == "result":
                reply, output = {"op": "result", "id": call_id}, flatten(result)
    except Exception as error:  # whatever a model raises is the call's answer, not this rank's end
        logger.warning("call %d of %s failed: %s", call_id, name, type(error).__name__)
        reply, output = describe_error(error, component=name, call_id=call_id), None
        if is_out_of_memory(error):
            free_memory_of(error)
    link.send(reply, output, timeout_s=SEND_TIMEOUT_S)
