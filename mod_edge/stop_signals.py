"""The signals that stop a command as Ctrl-C does: it cleans up first."""

import signal


def stop_signals() -> tuple[signal.Signals, ...]:
    """Ctrl-C, SIGTERM and SIGHUP (a closed terminal), without those that this process ignores.

    `nohup` ignores SIGHUP, and a shell lets its background jobs ignore Ctrl-C.
    """
    every = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return tuple(each for each in every if signal.getsignal(each) is not signal.SIG_IGN)
