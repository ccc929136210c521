"""The commands of `hansa coordinator`: run the coordinator's daemon. Nothing heavy is imported before a command runs."""

import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

EPILOG = (
    "Exit status: 0 stopped, 1 failed, 4 authentication, 66 no home, 69 a port is in use or the SuperLink fails,"
    " 73 disk full, 78 configuration."
)
HOME = "~/.local/share/hansa/coordinator"

app = typer.Typer(help="The coordinator's daemon.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _root() -> None:
    """Keep `run` a command of its own; with one command only, typer would leave its name out."""


@app.command("run", epilog=EPILOG)
def coordinator_run(
    home: Annotated[
        Path, typer.Option(help=f"The coordinator's home ({HOME}).", envvar="HANSA_HOME", show_default=False)
    ] = Path(HOME),
) -> None:
    """Serve the consortium until SIGTERM: doors for participants, Flower's SuperLink, and the studies that were started.

    The log goes to stderr, one JSON object a line where stderr is no terminal. After a crash, run it again: it goes on.
    """
    from hansa.coordinator.daemon import CoordinatorDaemon
    from hansa.coordinator.home import CoordinatorHome
    from hansa.federation.logs import set_up_logs

    set_up_logs()
    stop = threading.Event()

    def end(_signal: int, _frame: Any) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    CoordinatorDaemon(CoordinatorHome.open(home.expanduser())).serve(stop)
