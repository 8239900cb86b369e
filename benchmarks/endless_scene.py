"""`python -m benchmarks.endless_scene BUNDLE`: how well a bundle narrates one scene for an hour.

One synthetic scene of an hour, which no window holds, is narrated with a rolling window. The table
compares what was said with what was due, ten minutes at a time: a model that forgets its
instruction, drifts or talks nonsense once its window has rolled gets worse from row to row.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.markdown import ratio_text, table_head
from mod_edge.commands.console import out, reports_errors
from mod_edge.data.clips import read_clips
from mod_edge.data.dialogue import Dialogue, dialogue_of_clip
from mod_edge.evaluation.free_running import Account, FreeRunning, account_of, queries_of, score
from mod_edge.runtime import VideoFile, open_session
from mod_edge.toy_scenes.scenes import write_scenes

DURATION_S = 3600.0
SLICE_S = 600.0
WINDOW = "20s"
SEED = 7
TOLERANCE_S = 1.0


@dataclass(frozen=True)
class Narration:
    """What was due and what was said over one long scene.

    Attributes:
        dialogue: what was due.
        account: what was said.
        fps: frames per second.
    """

    dialogue: Dialogue
    account: Account
    fps: float

    def between(self, start_s: float, end_s: float) -> FreeRunning:
        """The score of one part of the scene."""
        return score([self.part(start_s, end_s)], self.fps, TOLERANCE_S)

    def part(self, start_s: float, end_s: float) -> tuple[Dialogue, Account]:
        """What was due and said in one part of the scene; captions at its borders are in one."""
        turns = tuple(
            turn for turn in self.dialogue.turns if start_s <= turn.last_frame / self.fps < end_s
        )
        captions = tuple(each for each in self.account.captions if start_s <= each.time_s < end_s)
        answers = tuple(
            answer
            for answer, turn in zip(self.account.answers, queries_of(self.dialogue), strict=True)
            if start_s <= turn.last_frame / self.fps < end_s
        )
        return replace(self.dialogue, turns=turns), Account(captions, answers)


def narrate(bundle: Path, photographs: Path) -> Narration:
    """Narrate the scene with this bundle."""
    with TemporaryDirectory() as folder:
        data = Path(folder) / "scenes"
        write_scenes(
            data,
            {"test": 1},
            seed=SEED,
            force=False,
            photographs=photographs,
            duration_s=DURATION_S,
        )
        (clip,) = read_clips(data, "test")
        with open_session(bundle, window=WINDOW) as session:
            fps = session.config.stream_config.frame_fps
            dialogue = dialogue_of_clip(clip, fps, round(DURATION_S * fps))
            with VideoFile(clip.video, fps=fps) as video:
                account = account_of(session, video, dialogue)
    return Narration(dialogue, account, fps)


def endless_table(narration: Narration) -> str:
    """F1 by ten minutes, as a Markdown table with a line about the run before it."""
    rows = []
    for start in range(0, int(DURATION_S), int(SLICE_S)):
        part = narration.between(start, start + SLICE_S)
        cells = (
            f"{start // 60} to {(start + int(SLICE_S)) // 60}",
            str(part.num_true),
            ratio_text(part.f1),
            ratio_text(part.moment_f1),
            f"{part.num_answers_right} of {part.num_answers}",
        )
        rows.append(f"| {' | '.join(cells)} |\n")
    columns = ("minutes", "captions due", "F1", "moment F1", "answers")
    return (
        f"One scene of an hour with a window of {WINDOW.removesuffix('s')} s, which rolled "
        f"{narration.account.num_rolls} times:\n\n"
        f"{table_head(*columns)}{''.join(rows)}"
    )


@reports_errors
def main(bundle: Annotated[Path, typer.Argument(help="Bundle of a model of such scenes.")]) -> None:
    """Print F1 by ten minutes of one scene of an hour."""
    clip = Path(__file__).resolve().parent.parent / "tests" / "data" / "box.mp4"
    out.print(endless_table(narrate(bundle, clip)), soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
