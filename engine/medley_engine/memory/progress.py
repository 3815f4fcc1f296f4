"""How far a preparation is, for whoever asked for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from medley_engine.transition import Transition


@dataclass
class Window:
    """Items that were copied and that a rank still maps where they were: (domain of that rank, item) → bytes that go
    once it maps the copy. ``homewards``: the copy lies in the rank's own domain.
    """

    limit_bytes: int = 0
    homewards: bool = False
    moving: dict[tuple[str, str], int] = field(default_factory=dict)

    def full(self) -> bool:
        """Whether copying has to wait. One expert at least may be on its way."""
        waiting = [size for size in self.moving.values() if size]
        return len(waiting) > 1 and sum(waiting) > self.limit_bytes

    def by_domain(self) -> dict[str, list[str]]:
        """What ranks of each domain may map anew."""
        found: dict[str, list[str]] = {}
        for domain, item in list(self.moving):
            found.setdefault(domain, []).append(item)
        return found


@dataclass
class Progress:
    """State of one preparation, for whoever asks."""

    state: str = "planning"
    total_bytes: int = 0
    copied_bytes: int = 0
    given_back_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    stop: bool = False
    window: Window = field(default_factory=Window)

    @property
    def ended(self) -> bool:
        """Whether no thread works on it any more."""
        return self.state not in ("planning", "copying")

    def report(self) -> dict[str, Any]:
        """As a reply. ``leaving`` lists, by domain, items that a rank of that domain may borrow elsewhere now;
        ``arrived`` those that it may map at home.
        """
        share = self.copied_bytes / self.total_bytes if self.total_bytes else float(self.state == "prepared")
        moving = self.window.by_domain()
        return {
            "state": self.state,
            "percent": round(100 * share, 1),
            "copiedBytes": self.copied_bytes,
            "totalBytes": self.total_bytes,
            "givenBackBytes": self.given_back_bytes,
            "seconds": self.seconds,
            "plan": self.summary,
            "failure": self.error,
            "leaving": {} if self.window.homewards else moving,
            "arrived": moving if self.window.homewards else {},
        }


def summarise(transition: Transition) -> dict[str, Any]:
    """A transition in numbers."""
    return {
        "diskBytes": sum(s.size_bytes for s in transition.disk),
        "diskItems": len(transition.disk),
        "peerBytes": sum(s.size_bytes for s in transition.peer),
        "peerItems": len(transition.peer),
        "zeroCopyItems": len(transition.zero_copy),
        "freeAfterItems": len(transition.free_after),
        "remapped": {str(rank): count for rank, count in transition.remapped.items()},
        "beforeBytes": transition.before_bytes,
        "peakBytes": transition.peak_bytes,
        "afterBytes": transition.after_bytes,
        "estimatedSeconds": round(transition.estimated_s, 6),
    }
