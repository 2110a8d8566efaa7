"""A follower's loop: gets messages from the leader, runs component calls, answers."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from workers.component_call import CacheContext, ComponentCall, LocalComponent
from workers.encoding import decode_tree, encode_tree
from workers.lanes import describe_error
from workers.link import Link

logger = logging.getLogger(__name__)
SEND_TIMEOUT_S = 600.0


def follow(link: Link, *, components: Mapping[str, LocalComponent], extra_stats: Callable[[], dict[str, int]]) -> None:
    """Runs until the leader says goodbye; raises `GroupDiedError` if the leader goes away.

    Idle time has no limit: a deadline starts with a message. A call that fails is answered with the error, and the
    loop goes on.
    """
    with torch.no_grad():
        while True:
            header, tensors = link.receive(timeout_s=None)
            match header["op"]:
                case "call":
                    _run_call(link, header, tensors, components)
                case "start":
                    link.forget()
                    for component in components.values():
                        component.start_request()
                case "configure":
                    module: Any = components[header["component"]].module
                    module.register_to_config(**decode_tree(header["tree"], tensors))
                case "stats":
                    counts = {
                        "denoiser_calls": sum(component.num_calls for component in components.values()),
                        "denoiser_rows": sum(component.num_rows for component in components.values()),
                        **extra_stats(),
                    }
                    link.send({"op": "stats", "stats": counts}, [], timeout_s=SEND_TIMEOUT_S)
                case "bye":
                    return


def _run_call(
    link: Link, header: dict[str, Any], tensors: list[torch.Tensor], components: Mapping[str, LocalComponent]
) -> None:
    call_id, name, wants = header["id"], header["component"], header["wants"]
    outputs: list[torch.Tensor] = []
    try:
        args, kwargs, context = decode_tree(header["tree"], tensors)
        call = ComponentCall(name, args, kwargs, None if context is None else CacheContext(*context))
        if wants == "nothing":
            components[name].run_and_drop(call)
            reply = {"op": "done", "id": call_id}
        else:
            versions = [tensor._version for tensor in tensors]
            reply, outputs = _encode_reply(call_id, components[name].run(call), wants)
            if versions != [tensor._version for tensor in tensors]:
                raise RuntimeError("the model wrote to its arguments, which other ranks still hold unchanged")
    except Exception as error:  # whatever a model raises is the call's answer, not this rank's end
        logger.warning("call %d of %s failed: %s", call_id, name, type(error).__name__)
        reply, outputs = describe_error(error, component=name, call_id=call_id), []
    link.send(reply, outputs, timeout_s=SEND_TIMEOUT_S)


def _encode_reply(call_id: int, result: Any, wants: str) -> tuple[dict[str, Any], list[torch.Tensor]]:
    if wants != "result":
        return {"op": "done", "id": call_id}, []
    outputs: list[torch.Tensor] = []
    tree = encode_tree(result, outputs)
    return {"op": "result", "id": call_id, "tree": tree}, outputs
