"""Commands of `hansa participant` for a running member: the node agent and what it says. Nothing heavy is imported before."""

import json
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from hansa.cli_asking import data_home, option

EPILOG = "Exit status: 0 stopped, 1 failed, 4 not a member, 66 no home, 69 unreachable, 73 disk full, 78 configuration."
Home = Annotated[
    Path | None, option("The participant's home (HANSA_HOME, or the user's data folder).", "--home")
]
Json = Annotated[bool, option("Print one JSON object on stdout and nothing else.", "--json")]

app = typer.Typer(rich_markup_mode=None)


@app.command("run", epilog=EPILOG)
def participant_run(home: Home = None) -> None:
    """Take part: answer the rounds of studies that were approved here, until SIGTERM. SIGHUP reads policies again.

    The log goes to stderr, one JSON object a line where stderr is no terminal. After a crash, run it again: it goes on.
    """
    from hansa.federation.logs import set_up_logs
    from hansa.participant.agent import Agent
    from hansa.participant.home import ParticipantHome

    set_up_logs()
    agent, stop = Agent(ParticipantHome.open(data_home(home, "participant"))), threading.Event()

    def end(_signal: int, _frame: Any) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGHUP, lambda _signal, _frame: agent.reload())
    agent.serve(stop)
    if agent.is_abandoned:  # a thread that computes would keep, or crash, an orderly end
        logging.shutdown()
        os._exit(0)


@app.command("status", epilog=EPILOG)
def participant_status(home: Home = None, json_only: Json = False) -> None:
    """Say what the agent of this home does, as it wrote it down last."""
    from hansa.participant.agent_status import read_status
    from hansa.participant.home import ParticipantHome

    place = ParticipantHome.open(data_home(home, "participant"))
    found = read_status(place.folder)
    if json_only:
        typer.echo(json.dumps({"schema": "hansa/agent-status/v1", "participant": place.name, **found}))
        return
    typer.echo(f"participant {place.name}")
    typer.echo(f"agent       {'runs' if found['running'] else 'does not run'}")
    typer.echo(f"status      {found['status']}")
