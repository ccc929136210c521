"""The commands of `hansa coordinator`: run the daemon, and check it. Nothing heavy is imported before a command runs."""

import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from hansa import cli_doctor
from hansa.cli_asking import data_home, option

EPILOG = (
    "Exit status: 0 stopped, 1 failed, 4 authentication, 66 no home, 69 a port is in use, the database is away or the SuperLink"
    " fails, 73 disk full, 78 configuration."
)
Home = Annotated[
    Path | None, option("The coordinator's home (HANSA_HOME, or the user's data folder).", "--home")
]

app = typer.Typer(help="The coordinator's daemon.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cli_doctor.coordinator)


@app.command("run", epilog=EPILOG)
def coordinator_run(home: Home = None) -> None:
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
    CoordinatorDaemon(CoordinatorHome.open(data_home(home, "coordinator"))).serve(stop)
