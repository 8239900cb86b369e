"""One line of the doctor's."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that is well or not, and what to do about it (empty when well)."""

    severity: Severity
    message: str
    advice: str = ""
