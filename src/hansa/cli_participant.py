"""The group `hansa participant`: members of a consortium, at the coordinator and at an institution. Each part has its own file."""

import typer

from hansa import cli_agent, cli_dataset, cli_decisions, cli_doctor, cli_joining, cli_members

app = typer.Typer(
    help="Members of a consortium, and a member's own data.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(cli_members.app)
app.add_typer(cli_joining.app)
app.add_typer(cli_agent.app)
app.add_typer(cli_doctor.participant)
app.add_typer(cli_dataset.app, name="dataset")
app.add_typer(cli_decisions.app, name="study")
