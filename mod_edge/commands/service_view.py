"""What `run` tells the service manager: ready, and alive with every frame."""

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
    """READY=1 at the first frame, WATCHDOG=1 at later ones, and STATUS=.

    Frames are the only sign of life: a camera, a decoder or a model that hangs sends none, and the
    service manager restarts the service. Of several streams, any one's frames count.
    """

    def __init__(self, session: Session, manager: ServiceManager, *, stream: str = "") -> None:
        super().__init__(session, stream=stream)
        self._manager = manager
        self._is_ready = False
        self._alive_s = self._status_s = -math.inf

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
            self._show(self.session.summary())

    def finish(self, summary: Summary) -> None:
        self._show(summary)

    def _show(self, summary: Summary) -> None:
        name = f"{self.stream}: " if self.stream else ""
        self._manager.show_status(
            f"{name}{summary.num_frames} frames at {summary.fps:g} frames/s, "
            f"{summary.num_dropped} dropped, {summary.num_replies} replies, "
            f"cache {summary.cache_fill:.0%} full"
        )
