"""Text without the credentials of network cameras: for messages, events and logs."""

import re

HIDDEN = "***"
# The second kind is a user and a password with a slash, which no port is.
USER_OF_ADDRESS = re.compile(r"//(?:[^/\s]*@|[^/@\[\s]+:(?![0-9]+/)\S*@)")
# A name=value of an address's query or path (?token=..., user=me&password=...) or of a GStreamer
# element (user-pw="..."). The value of a path may go on after a slash.
SECRET_NAMES = (
    r"[\w.-]*(?:pass(?:wo?r?d)?|passwd|pwd|token|secret|credential|signature|api[_-]?key)[\w.-]*"
    r"|auth|key|sig|user-pw|user-id|user|username|login"
)
SECRET = re.compile(rf"(?i)(?<![\w.-])({SECRET_NAMES})=(\"[^\"]*\"|'[^']*'|[^&#;!\s\"']+)")


def without_credentials(text: str) -> str:
    """The text without users, passwords and tokens.

    `rtsp://user:secret@host/1?token=abc` becomes `rtsp://***@host/1?token=***`.
    """
    return SECRET.sub(rf"\1={HIDDEN}", USER_OF_ADDRESS.sub(f"//{HIDDEN}@", text))
