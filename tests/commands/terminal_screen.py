"""What a terminal shows of the control codes that rich's live display sends."""

import codecs
import re

CODE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


class TerminalScreen:
    """The lines of a terminal that is never full: text, and moves of the cursor."""

    def __init__(self):
        self.lines = [""]
        self._row = self._column = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._rest = ""

    def feed(self, data):
        """Take the bytes of a program's output."""
        text = self._rest + self._decoder.decode(data)
        self._rest, place = "", 0
        while place < len(text):
            if text[place] != "\x1b":
                self._write(text[place])
                place += 1
                continue
            code = CODE.match(text, place)
            if code is None:  # the end of it is still to come
                assert len(text) - place < 20, f"an unknown code: {text[place : place + 20]!r}"
                self._rest = text[place:]
                return
            self._obey(*code.groups())
            place = code.end()

    def _write(self, char):
        if char == "\r":
            self._column = 0
        elif char == "\n":
            self._row, self._column = self._row + 1, 0
            self.lines += [""] * (self._row + 1 - len(self.lines))
        else:
            line = self.lines[self._row].ljust(self._column)
            self.lines[self._row] = line[: self._column] + char + line[self._column + 1 :]
            self._column += 1

    def _obey(self, numbers, name):
        if name == "A":
            self._row -= int(numbers or 1)
        elif name == "K":
            assert numbers == "2"
            self.lines[self._row] = ""
        else:
            assert name in "mhl", f"an unknown code: {numbers}{name}"  # colours, cursor on and off
