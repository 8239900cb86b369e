"""What `run` opens for a stream that nobody watches: the event file and the service manager."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mod_edge.commands.arguments import usage_errors
from mod_edge.commands.event_file import EventFile, EventFileView
from mod_edge.commands.service_view import ServiceView
from mod_edge.commands.stream_view import StreamView
from mod_edge.native.sd_notify import service_manager_of
from mod_edge.runtime.session import Session


@contextmanager
def recording(
    events: Path | None, environment: Mapping[str, str]
) -> Iterator[Callable[[str, Session], list[StreamView]]]:
    """Open what outlives the screen; yields what makes the views of a stream.

    Open it before the model, which takes longer to load than an error to show.

    Args:
        events: path of the event file; None for none.
        environment: where systemd sets its variables.

    Raises:
        typer.BadParameter: `events` names something other than a file.
        ModEdgeError: a variable has a wrong value, or the event file cannot be opened.
        OSError: the disk is full.
    """
    with ExitStack() as opened:
        with usage_errors("--events"):
            file = None if events is None else opened.enter_context(EventFile(events))
        manager = service_manager_of(environment)
        if manager is not None:
            opened.enter_context(manager)

        def views_of(name: str, session: Session) -> list[StreamView]:
            views: list[StreamView] = []
            if file is not None:
                views.append(EventFileView(session, file, stream=name))
            if manager is not None:
                views.append(ServiceView(session, manager, stream=name))
            return views

        yield views_of
