"""What became of a model's weights, for the log and for who asks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Optional


@dataclass
class Report:
    """
    Attributes:
        way: "view", "adopt", "copy"; or "engine", if vLLM loaded the weights by itself.
        model: the resident model's name.
        shared_bytes: of parameters and buffers that are views of it.
        copied_bytes: of those that have memory of their own.
        copied: the parameters that have memory of their own, and why.
        reasons: why no earlier way was taken.
    """

    way: str
    model: Optional[str] = None
    shared_bytes: int = 0
    copied_bytes: int = 0
    copied: Dict[str, str] = field(default_factory=dict)
    reasons: List[str] = field(default_factory=list)

    def __str__(self) -> str:
        if self.way == "engine":
            return "the weights are not shared"
        text = f"{size(self.shared_bytes)} shared, {size(self.copied_bytes)} copied, of {self.model}"
        return text + (f" ({len(self.copied)} parameters have memory of their own)" if self.copied else "")


def size(n: float) -> str:
    """Bytes as text, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            break
        n /= 1000
    return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"


_reports: List[Report] = []


def add(report: Report) -> None:
    _reports.append(report)


def reports() -> List[Report]:
    """Of all models that this process has loaded with --load-format rocmforge, in order."""
    return list(_reports)
