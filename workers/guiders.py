"""A pipeline's guider objects: each request finds them as they were loaded; refused is what the group cannot do."""

import copy
from collections.abc import Mapping
from typing import Any

from diffusers.guiders import BaseGuidance

from workers.errors import GroupStartError
from workers.lanes import LaneLayout


class Guiders:
    """The guiders among a pipeline's components.

    A guider keeps the step of its last call: one that guides for a part of the steps would begin the next request as if
    that were over, and the pipeline would not encode its negative prompt.
    """

    def __init__(self, components: Mapping[str, Any]) -> None:
        self._states = [
            (guider, {name: copy.copy(value) for name, value in vars(guider).items()})
            for guider in components.values()
            if isinstance(guider, BaseGuidance)
        ]

    def restore(self) -> None:
        """Puts every guider back into the state that it was loaded in."""
        for guider, state in self._states:
            vars(guider).clear()
            vars(guider).update({name: copy.copy(value) for name, value in state.items()})

    def check_layout(self, layout: LaneLayout) -> None:
        """Refuses guiders that change the denoiser around single calls where a call runs on several ranks.

        Their hooks are on the leader's blocks only: with one rank a lane such a call runs there, beside the others.

        Raises:
            GroupStartError: names the guider.
        """
        if layout.lane_size == 1 and not layout.all_take_part:
            return
        for guider, _ in self._states:
            if _changes_models(guider):
                raise GroupStartError(
                    f"{type(guider).__name__} hooks the denoiser's blocks for single calls, which a denoiser that is "
                    "spread over several ranks cannot do: use another guider, or a plan without sharding"
                )


def _changes_models(guider: BaseGuidance) -> bool:
    prepare: Any = type(guider).prepare_models
    return prepare is not BaseGuidance.prepare_models
