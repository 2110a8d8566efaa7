"""What a step of the schedule consists of: decides whether a call is cut, or waits for others to run beside it."""

from collections import defaultdict


class StepProfile:
    """Rows of each call that a component got in the last whole step."""

    def __init__(self) -> None:
        self._this_step: defaultdict[str, list[int]] = defaultdict(list)
        self._last_step: dict[str, list[int]] = {}

    def record(self, component: str, num_rows: int) -> None:
        """Notes a call of the running step."""
        self._this_step[component].append(num_rows)

    def end_step(self) -> None:
        """The scheduler has stepped. Components without a call keep their profile: several schedulers step in turn."""
        self._last_step.update(self._this_step)
        self._this_step.clear()

    def forget_step(self) -> None:
        """Drops a step that was not finished."""
        self._this_step.clear()

    def num_parts(self, component: str, *, num_rows: int, num_lanes: int) -> int:
        """Into how many parts a call is cut.

        Calls of equal rows (one a branch) share the lanes and stay whole if there are enough of them, which keeps them
        equal to the serial ones to the bit. A call alone, or beside calls of fewer rows (a pass of skip-layer
        guidance), takes all the lanes that it can use.
        """
        rows = self._last_step.get(component) or [num_rows]
        lanes_a_call = max(1, num_lanes // len(rows)) if len(set(rows)) == 1 else num_lanes
        return min(num_rows, lanes_a_call)
