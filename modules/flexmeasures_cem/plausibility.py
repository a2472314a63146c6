"""Which of a storage's readings to believe: a change that power times time cannot explain has to last.

A reading is a fill level, or a state of charge in kWh: the unit is the caller's. Moments are seconds, of any
clock.
"""

import math
from dataclasses import dataclass

DOUBT_SECONDS = 60.0
"""How long a change that cannot be explained has to last before it is believed."""
MAX_DOUBT_SECONDS = 300.0
"""After so long, the newest reading is believed, though no two of them explain each other."""


@pyscript_compile
def change_is_explainable(
    change: float, seconds: float, tolerance: float, greatest_rise: float, greatest_fall: float
) -> bool:
    """Return whether a storage can have changed by so much in that time; rise and fall are per second."""
    if seconds <= 0:
        return abs(change) <= tolerance
    return -greatest_fall * seconds - tolerance <= change <= greatest_rise * seconds + tolerance


@dataclass
class _BelievedLevel:
    """The level of a storage that is believed, and the newest reading where that is suspect.

    `tolerance` is in the level's unit, `greatest_rise` and `greatest_fall` are in that unit per second,
    both positive; they may be changed at any time. Without them every reading is believed.

    `value` was believed last, and confirmed at `moment`. `suspect` is the newest reading where `value`
    does not explain it, `suspect_at` when it came; readings have explained each other from
    `suspect_since` on, and none has been explained by `value` from `doubt_since` on.
    """

    tolerance: float = math.inf
    greatest_rise: float = math.inf
    greatest_fall: float = math.inf
    value: float | None = None
    moment: float = -math.inf
    suspect: float | None = None
    suspect_at: float = -math.inf
    suspect_since: float = -math.inf
    doubt_since: float = -math.inf

    @property
    @pyscript_compile
    def believed(self) -> float:
        """The level that is believed; raise ValueError before the first reading."""
        if self.value is None:
            raise ValueError("there is no reading yet")
        return self.value

    @property
    @pyscript_compile
    def is_suspect(self) -> bool:
        """Whether the newest reading is not believed yet."""
        return self.suspect is not None

    @property
    @pyscript_compile
    def believed_from(self) -> float | None:
        """The moment from which the suspect reading is believed, should it last until then; else None."""
        if self.suspect is None:
            return None
        return min(self.suspect_since + DOUBT_SECONDS, self.doubt_since + MAX_DOUBT_SECONDS)

    @pyscript_compile
    def update(self, value: float, moment: float) -> bool:
        """Take a reading; return whether it is believed."""
        self._clamp(moment)
        if self.value is None or self._explains(self.value, self.moment, value, moment):
            self._believe(value, moment)
            return True
        if self.suspect is None:
            self.suspect_since = self.doubt_since = moment
        elif not self._explains(self.suspect, self.suspect_at, value, moment):
            self.suspect_since = moment
        self.suspect, self.suspect_at = value, moment
        return self.settle(moment)

    @pyscript_compile
    def settle(self, moment: float) -> bool:
        """Believe the suspect reading where it has lasted long enough; return whether that is so."""
        self._clamp(moment)
        if self.suspect is None or self.believed_from is None or moment < self.believed_from:
            return False
        self._believe(self.suspect, moment)
        return True

    @pyscript_compile
    def forget(self) -> None:
        """Believe the next reading, whatever it is: it is of another storage."""
        self.value = self.suspect = None

    @pyscript_compile
    def _believe(self, value: float, moment: float) -> None:
        self.value, self.moment, self.suspect = value, moment, None

    @pyscript_compile
    def _explains(self, before: float, then: float, value: float, moment: float) -> bool:
        bounds = self.tolerance, self.greatest_rise, self.greatest_fall
        return change_is_explainable(value - before, moment - then, *bounds)

    @pyscript_compile
    def _clamp(self, moment: float) -> None:
        """Clamp what is remembered, in case the clock was set back."""
        self.moment, self.suspect_at = min(self.moment, moment), min(self.suspect_at, moment)
        self.suspect_since = min(self.suspect_since, moment)
        self.doubt_since = min(self.doubt_since, moment)


BelievedLevel = _BelievedLevel
