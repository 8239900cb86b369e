"""The line that a person types below a live view, from the bytes of the keys.

A terminal echoes keys where its cursor is, which a live view moves. So while a live view is drawn,
the terminal neither echoes keys nor collects lines (`unechoed`): this class does, and the view
draws the line. Ctrl-C and Ctrl-Z stay the terminal's.
"""

import codecs
import re
import termios
import tty
from collections.abc import Callable

BACKSPACE, DELETE, KILL_LINE, KILL_WORD, ESCAPE = "\x08", "\x7f", "\x15", "\x17", "\x1b"
# What other keys send: arrows, function keys, and a key with Alt.
KEY_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|[^\[O])", re.DOTALL)


class TypedLine:
    """Collects keys into lines; `text` is the line that is being typed."""

    def __init__(self, on_line: Callable[[str], None], on_escape: Callable[[], None]) -> None:
        """An empty line.

        Args:
            on_line: called with each line that Enter ends; not with empty ones.
            on_escape: called when Esc is pressed.
        """
        self.text = ""
        self._on_line = on_line
        self._on_escape = on_escape
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> None:
        """Take the bytes of one or more keys."""
        if data == ESCAPE.encode():  # other keys that begin with it come in one piece
            self._on_escape()
            return
        for char in KEY_SEQUENCE.sub("", self._decoder.decode(data)):
            self._press(char)

    def _press(self, char: str) -> None:
        if char in "\r\n":
            line, self.text = self.text, ""
            if line.strip():
                self._on_line(line)
        elif char in (BACKSPACE, DELETE):
            self.text = self.text[:-1]
        elif char == KILL_LINE:
            self.text = ""
        elif char == KILL_WORD:
            self.text = re.sub(r"\S*\s*\Z", "", self.text)
        elif char.isprintable():
            self.text += char


def unechoed(descriptor: int) -> None:
    """Make the terminal deliver every key at once, without echo; signals of keys stay.

    Raises:
        termios.error: the terminal is gone.
    """
    if termios.tcgetattr(descriptor)[tty.LFLAG] & termios.ICANON:
        tty.setcbreak(descriptor, termios.TCSADRAIN)
