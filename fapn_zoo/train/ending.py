"""When a run ends before its last step: its hours are over, or its scores do not rise any more."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from fapn_zoo.train.settings import Settings


class Ending:
    """The last step of a run, which `max_hours` moves to the front.

    At the pace of the run so far, evaluations and checkpoints counted, the rate begins to fall early enough to be down
    when the time is up. This is decided once, at a step that the clock chooses; all that follows depends on that step.

    Attributes:
        cooling: first and last step of that fall; () while it is not decided.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.cooling = settings, ()
        self.spent, self.begun = 0.0, time.monotonic()

    @property
    def last(self) -> int:
        """How many steps there will be."""
        return self.cooling[1] if self.cooling else self.settings.steps

    def done(self, step: int) -> float:
        """How much of the run is over after so many steps, 0..1; from where the rate falls on, the rest goes faster."""
        if not self.cooling or step < (start := self.cooling[0]):
            return min(step / max(self.settings.steps, 1), 1.0)
        before = start / max(self.settings.steps, 1)
        return before + (1 - before) * (step - start) / max(self.last - start, 1)

    def rest(self, step: int) -> int:
        """In how many steps from `step` on the rate has to fall, if it has to begin now; 0: not yet."""
        s, limit = self.settings, 3600 * self.settings.max_hours
        if not limit or self.cooling or not step:
            return 0
        seconds = self.seconds()
        pace = seconds / step
        share = min(s.cooldown, 0.9)  # of all steps, so that the others are step / (1 - share) in all
        fall = max(math.ceil(step * share / (1 - share)), 1)
        if seconds + fall * pace < limit or seconds + (s.steps - step) * pace <= limit:
            return 0
        return max(min(fall, int((limit - seconds) / pace), s.steps - step), 1)

    def seconds(self) -> float:
        """How long the run has lasted, of all its parts since they began."""
        return self.spent + time.monotonic() - self.begun

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it; nothing where time does not matter."""
        return {"cooling": list(self.cooling), "seconds": self.seconds()} if self.settings.max_hours else {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave."""
        self.cooling, self.spent = tuple(state.get("cooling", ())), state.get("seconds", 0.0)


def out_of_patience(scores: Mapping[int, float | None], patience: int, step: int) -> bool:
    """Whether the best of the scores up to a step was followed by `patience` that are not better; 0: never."""
    seen = [-math.inf if score is None else score for at, score in sorted(scores.items()) if at <= step]
    return 0 < patience < len(seen) - (seen.index(max(seen)) if seen else 0)
