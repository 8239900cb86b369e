"""What `run` tells the service manager: ready, alive with every frame, stopping."""

import math
import time

from mod_edge.commands.stream_view import StreamView
from mod_edge.native.sd_notify import ServiceManager
from mod_edge.runtime.events import Event, FrameEvent, Summary
from mod_edge.runtime.session import Session

STATUS_S = 5.0  # between two status lines
# Of the watchdog's time, between two signs of life: systemd wants them twice in that time.
WATCHDOG_SHARE = 0.25


class ServiceView(StreamView):
    """READY=1 at the first frame, WATCHDOG=1 at later ones, STATUS=, STOPPING=1 at the end.

    Frames are the only sign of life: a camera, a decoder or a model that hangs sends none, and the
    service manager restarts the service.
    """

    def __init__(self, session: Session, manager: ServiceManager) -> None:
        super().__init__(session)
        self._manager = manager
        self._is_ready = False
        self._alive_s = self._status_s = -math.inf

    def __exit__(self, *_exc: object) -> None:
        self._manager.stopping()  # also after an error

    def show(self, event: Event) -> None:
        if not isinstance(event, FrameEvent):
            return
        if not self._is_ready:
            self._is_ready = True
            self._manager.ready()
        now_s = time.monotonic()
        watchdog_s = self._manager.watchdog_s
        if watchdog_s is not None and now_s - self._alive_s >= WATCHDOG_SHARE * watchdog_s:
            self._alive_s = now_s
            self._manager.keep_alive()
        if now_s - self._status_s >= STATUS_S:
            self._status_s = now_s
            self._manager.show_status(_status(self.session.summary()))

    def finish(self, summary: Summary) -> None:
        self._manager.show_status(_status(summary))


def _status(summary: Summary) -> str:
    return (
        f"{summary.num_frames} frames at {summary.fps:g} frames/s, {summary.num_dropped} dropped, "
        f"{summary.num_replies} replies, cache {summary.cache_fill:.0%} full"
    )
