"""The page of performance: `page.md` with tables of the measurements."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from string import Template

from benchmarks.markdown import table_head
from benchmarks.peers.contenders import CONTENDERS, OURS
from benchmarks.peers.interleaving import Interleaved, Step
from benchmarks.peers.measurements import Measurements
from benchmarks.peers.workers.line_protocol import NUM_POSITIONS, THREADS
from mod_edge.bundle.staging import write_whole
from mod_edge.config import TextConfig
from mod_edge.errors import ModEdgeError

TEMPLATE = Path(__file__).with_name("page.md")
NOT_MEASURED = "-"
# Rows and columns of the first page's table.
FIRST_PAGE_ROWS = (OURS, "full-int8", "llama-cpp", "openvino-int4", "genai-int4")
FIRST_PAGE_TOKENS = (11, 55)
FIRST_PAGE_BLOCK = re.compile(r"(?<=<!-- peers -->\n).*?(?=<!-- end of peers -->\n)", re.DOTALL)
Found = Mapping[Step, Interleaved]


def write_page(
    page: Path,
    text: TextConfig,
    measurements: Measurements,
    steps: Sequence[Step],
    failed: Mapping[str, str],
    own_bench: str,
) -> None:
    """Write the page.

    Args:
        page: Markdown file to write.
        text: the measured geometry.
        measurements: of every one of `steps`.
        steps: with two lengths of the past.
        failed: why contenders are missing, by contender.
        own_bench: what `mod-edge bench` printed.
    """
    found = {step: each for step in steps if (each := measurements.of(step)) is not None}
    for each in found.values():
        failed = each.failed | failed
    when, machine = measurements.setting()
    short, long = sorted({step.past for step in steps})
    content = {
        "ours": title_of(OURS),
        "geometry": geometry_text(text),
        "threads": THREADS,
        "positions": f"{NUM_POSITIONS:,}",
        "rounds": rounds_text(steps),
        "machine": machine,
        "date": when,
        "short": f"{short:,}",
        "long": f"{long:,}",
        "table_short": times_table(found, short, failed),
        "table_long": times_table(found, long, failed),
        "table_resources": resources_table(measurements),
        "table_contenders": contenders_table(measurements),
        "load": load_text(found),
        "own_bench": own_bench.strip(),
    }
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    write_whole(page, template.substitute(content).encode())


def write_first_page(page: Path, measurements: Measurements, steps: Sequence[Step]) -> None:
    """Write a small table of the steps with the longer past between the markers of `page`.

    Raises:
        ModEdgeError: the page has no markers.
    """
    past = max(step.past for step in steps)
    columns = {
        step.tokens: found.times_ms
        for step in steps
        if step.past == past and step.tokens in FIRST_PAGE_TOKENS
        if (found := measurements.of(step)) is not None
    }
    rows = "".join(
        f"| {title_of(key)} | {' | '.join(time_text(times, key) for times in columns.values())} |\n"
        for key in FIRST_PAGE_ROWS
    )
    head = table_head("", *(f"{tokens} tokens, ms" for tokens in columns))
    text, count = FIRST_PAGE_BLOCK.subn(f"{head}{rows}", page.read_text(encoding="utf-8"))
    if count != 1:
        raise ModEdgeError(f"{page} has {count} pairs of markers for peers, wanted one")
    write_whole(page, text.encode())


def times_table(found: Found, past: int, failed: Mapping[str, str]) -> str:
    """Medians of the steps with this `past`, a row for each contender."""
    columns = {step.tokens: each.times_ms for step, each in found.items() if step.past == past}
    head = table_head("", *(f"{tokens} token{'s' * (tokens > 1)}" for tokens in columns))
    rows = []
    for contender in CONTENDERS:
        key = contender.key
        if key in failed:
            cells = [failed[key].replace("|", "\\|"), *[""] * (len(columns) - 1)]
        else:
            cells = [time_text(times_ms, key) for times_ms in columns.values()]
        rows.append(f"| {contender.title} | {' | '.join(cells)} |\n")
    return f"{head}{''.join(rows)}"


def time_text(times_ms: Mapping[str, Sequence[float]], key: str) -> str:
    """A contender's median, and the median of ours divided by it."""
    if key not in times_ms:
        return NOT_MEASURED
    value = median(times_ms[key])
    if key == OURS or OURS not in times_ms:
        return f"{value:.0f}"
    return f"{value:.0f} ({median(times_ms[OURS]) / value:.2f}x)"


def resources_table(measurements: Measurements) -> str:
    """Memory, load time and size of each contender."""
    rows = [
        f"| {title_of(key)} | {facts.resident_bytes / 1e9:.2f} | {facts.anonymous_bytes / 1e9:.2f} "
        f"| {facts.load_s:.1f} | {facts.size_bytes / 1e9:.2f} |\n"
        for key, facts in measurements.facts().items()
    ]
    head = table_head("", "resident, GB", "anonymous, GB", "load, s", "on disk, GB")
    return f"{head}{''.join(rows)}"


def contenders_table(measurements: Measurements) -> str:
    """Version, weights and head of each contender."""
    facts = measurements.facts()
    rows = []
    for each in CONTENDERS:
        versions = facts[each.key].versions.items() if each.key in facts else ()
        names = ", ".join(f"{name} {version}" for name, version in versions)
        rows.append(f"| {each.title} | {names} | {each.weights} | {each.head} |\n")
    return f"{table_head('', 'versions', 'weights', 'logits of')}{''.join(rows)}"


def load_text(found: Found) -> str:
    """What else kept the machine busy."""
    waiting, other = (
        max(getattr(each, name) for each in found.values())
        for name in ("waiting_cores", "other_cores")
    )
    mean = sum(each.other_cores for each in found.values()) / len(found)
    return (
        f"While one contender computed, the waiting ones kept at most {waiting:.2f} cores busy. "
        f"All other processes of the machine kept {mean:.2f} cores busy on average, and at most "
        f"{other:.2f} during one of the steps above.\n"
    )


def rounds_text(steps: Sequence[Step]) -> str:
    """How many rounds were timed, by tokens if that differs."""
    by_tokens = {step.tokens: step.rounds for step in steps}
    if len(set(by_tokens.values())) == 1:
        return str(steps[0].rounds)
    longest = max(by_tokens)
    most = max(by_tokens.values())
    return f"{most} ({longest} tokens: {by_tokens[longest]})"


def geometry_text(text: TextConfig) -> str:
    """The decoder's size in words."""
    return (
        f"{text.num_hidden_layers} layers, hidden size {text.hidden_size:,}, "
        f"{text.num_attention_heads} heads ({text.num_key_value_heads} for keys and values), "
        f"vocabulary {text.vocab_size:,}, the size of Llama-3.2-1B"
    )


def title_of(key: str) -> str:
    """A contender's title."""
    (title,) = (each.title for each in CONTENDERS if each.key == key)
    return title
