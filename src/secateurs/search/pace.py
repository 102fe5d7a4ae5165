"""How far a search is, in words: for those who watch a log and not a bar."""

from __future__ import annotations

import time


class Pace:
    """Counts what is done of so many, and says how long the others will take.

    >>> pace = Pace(3)
    >>> pace("macs 12")[:14], Pace.spelled(95), Pace.spelled(7300)
    ('1 of 3, macs 1', '95 s', '2.0 h')
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self._total, self._before, self._done, self._begun = total, done, done, time.perf_counter()
        self.last = ""

    def __call__(self, said: str) -> str:
        """What is said once one more is done."""
        self._done += 1
        self.last = said
        left = (self._total - self._done) * (time.perf_counter() - self._begun) / (self._done - self._before)
        return f"{self._done} of {self._total}, {said}" + (f"; {self.spelled(left)} left" if self._done < self._total else "")

    @staticmethod
    def spelled(seconds: float) -> str:
        """A time as one says it."""
        if seconds < 100:
            return f"{seconds:.0f} s"
        return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
