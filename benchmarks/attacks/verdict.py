"""What came of a number of attacks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Verdict:
    """Outcomes with their counts, and the faults in words: what must never be."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, outcome: str, fault: str | None = None) -> None:
        self.counts[outcome] += 1
        if fault is not None and len(self.faults) < 20:
            self.faults.append(fault[:500])

    def join(self, other: Verdict) -> None:
        self.counts += other.counts
        self.faults = [*self.faults, *other.faults][:20]

    def to_plain(self) -> dict[str, Any]:
        return {"counts": dict(self.counts), "faults": self.faults}

    @staticmethod
    def of_plain(plain: dict[str, Any]) -> Verdict:
        return Verdict(Counter(plain["counts"]), list(plain["faults"]))
