"""What was taken from elsewhere into a model, what was not, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Report:
    """The account of a transfer: every name of either side is in one of these.

    Attributes:
        taken: aqnet's name and where it came from.
        initialised: aqnet's name (or a part of it) and why it was not found.
        dropped: the source's name (or a part of it) and why it was left.
        notes: what else the reader should know.
    """

    taken: dict[str, str] = field(default_factory=dict)
    initialised: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For the terminal: what was taken by group, everything else one by one."""
        groups = Counter(name.partition(".")[0] for name in self.taken)
        listed = ", ".join(f"{name} ({count})" for name, count in groups.items())
        return [
            f"taken: {len(self.taken)} tensors: {listed}",
            *(f"initialised: {name}: {why}" for name, why in self.initialised.items()),
            *(f"dropped: {name}: {why}" for name, why in self.dropped.items()),
            *(f"note: {text}" for text in self.notes),
        ]

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint's state.json."""
        return asdict(self)
