"""How long a component call may take before its ranks count as hung: a multiple of what such calls took before."""

from collections.abc import Hashable
from dataclasses import dataclass

from workers.recently_used import RecentlyUsed

_MAX_KINDS = 1024
_FADING = 0.95


@dataclass(frozen=True, slots=True)
class CallDeadlines:
    """Settings of a group.

    Attributes:
        factor: a call may take this many times what the slowest of its kind took lately, or what the plan predicts
            for a step, whichever is more.
        floor_s: no call gets less: a busy machine, a page fault or a recompiled shape are no reason to end a group.
        first_s: for the first call of a kind, which loads kernels and may compile; more if the prediction asks for it.
    """

    factor: float = 20.0
    floor_s: float = 60.0
    first_s: float = 600.0


class CallPace:
    """Remembers the seconds of calls by kind (component and shapes), and says the next one's deadline.

    Args:
        deadlines: the settings.
        predicted_step_s: seconds of a step by the plan; None if it does not say.
    """

    def __init__(self, deadlines: CallDeadlines, *, predicted_step_s: float | None = None) -> None:
        self._deadlines = deadlines
        self._predicted_s = predicted_step_s or 0.0
        self._slowest_s: RecentlyUsed[Hashable, float] = RecentlyUsed(_MAX_KINDS)

    @property
    def floor_s(self) -> float:
        """For what takes no computing."""
        return self._deadlines.floor_s

    def deadline_s(self, kind: Hashable) -> float:
        """Seconds that the next call of this kind may take."""
        settings = self._deadlines
        if self._slowest_s.get(kind, 0.0) == 0.0:
            return max(settings.first_s, settings.floor_s, settings.factor * self._predicted_s)
        return max(settings.floor_s, settings.factor * max(self._slowest_s[kind], self._predicted_s))

    def add(self, kind: Hashable, seconds: float) -> None:
        """A call of this kind has ended well. The first one is no measure of the others; old slowness fades."""
        if kind not in self._slowest_s:
            self._slowest_s[kind] = 0.0
        else:
            self._slowest_s[kind] = max(seconds, _FADING * self._slowest_s[kind])
