"""The kept measurements: a JSON file for each step, one for what was noted about the contenders."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.figures import machine_name
from benchmarks.peers.interleaving import Interleaved, Step
from benchmarks.peers.workers.line_protocol import THREADS
from mod_edge.bench.device_facts import look_at_device
from mod_edge.bundle.staging import write_whole

FACTS_FILE, OWN_BENCH_FILE = "contenders.json", "own-bench.json"


@dataclass(frozen=True)
class ContenderFacts:
    """What was noted about a contender in a run.

    Attributes:
        versions: of its packages.
        load_s: seconds to load its model.
        size_bytes: of its model on disk.
        resident_bytes: of its process at the end, files that it maps included.
        anonymous_bytes: the part that no file backs.
    """

    versions: dict[str, str]
    load_s: float
    size_bytes: int
    resident_bytes: int
    anonymous_bytes: int


class Measurements:
    """A folder of measurements of these models; those of others count as missing."""

    def __init__(self, folder: Path, models: Mapping[str, str]) -> None:
        """Use the folder, which is made if it is missing.

        Args:
            folder: of JSON files.
            models: name of each contender's model.
        """
        self._folder, self._models = folder, dict(models)
        folder.mkdir(parents=True, exist_ok=True)

    def missing(self, steps: Sequence[Step]) -> list[Step]:
        """The steps that were not measured."""
        return [step for step in steps if self.of(step) is None]

    def of(self, step: Step) -> Interleaved | None:
        """A step's measurements, or None."""
        found = self._read(f"{step.name}.json")
        return None if found is None else Interleaved(**found)

    def add(self, step: Step, found: Interleaved) -> None:
        """Keep a step's measurements."""
        self._write(f"{step.name}.json", asdict(found))

    def add_facts(self, when: date, contenders: Mapping[str, ContenderFacts]) -> None:
        """Keep what was noted about the contenders, and on which machine."""
        facts = {key: asdict(each) for key, each in contenders.items()}
        where = f"{machine_name()} ({', '.join(look_at_device(THREADS).instruction_sets)})"
        document = {"date": when.isoformat(), "machine": where, "contenders": facts}
        self._write(FACTS_FILE, document)

    def own_bench(self, measure: Callable[[], str]) -> str:
        """What `measure` printed, from its file if it ran before."""
        found = self._read(OWN_BENCH_FILE)
        if found is None:
            found = {"printed": measure()}
            self._write(OWN_BENCH_FILE, found)
        printed: str = found["printed"]
        return printed

    def setting(self) -> tuple[str, str]:
        """Date and machine of the last run."""
        facts = self._read(FACTS_FILE)
        assert facts is not None
        return facts["date"], facts["machine"]

    def facts(self) -> dict[str, ContenderFacts]:
        """What was noted about each contender in the last run."""
        facts = self._read(FACTS_FILE)
        assert facts is not None
        return {key: ContenderFacts(**each) for key, each in facts["contenders"].items()}

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self._folder / name
        if not path.is_file():
            return None
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return document["found"] if document["models"] == self._models else None

    def _write(self, name: str, found: Mapping[str, Any]) -> None:
        document = {"models": self._models, "found": found}
        write_whole(self._folder / name, json.dumps(document, indent=1).encode())
