"""What Python accepts as a string and nothing else accepts as text."""


def lone_surrogate(text: str) -> str | None:
    r"""The first character of `text` that is half a character, described; None if there is none.

    A byte of the command line that is not in the locale's encoding becomes one, and so does an
    escape such as "\ud800" in a JSON file. No tokenizer takes it and no file can hold it as UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        code = ord(text[exc.start])
        is_byte = 0xDC80 <= code <= 0xDCFF  # how Python keeps a byte that it cannot decode
        what = f"byte 0x{code - 0xDC00:02X}" if is_byte else f"half a character, U+{code:04X}"
        return f"character {exc.start + 1} is {what}"
    return None
