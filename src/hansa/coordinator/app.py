"""The coordinator as a Flower `ServerApp`."""

from collections.abc import Callable, Mapping

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from hansa.coordinator.aggregator import AggregationService
from hansa.coordinator.loop_state import Records
from hansa.coordinator.rounds import RoundLoop, RoundSummary
from hansa.errors import CohortMismatch
from hansa.secure_agg.certificates import RevocationList
from hansa.secure_agg.identity import Roster
from hansa.secure_agg.parameters import Terms


def make_server_app(
    *,
    roster: Roster,
    terms: Terms,
    nodes: Mapping[str, int],
    aggregation: AggregationService,
    rounds: int,
    rounds_per_epoch: int = 0,
    deadline_seconds: float,
    on_round: Callable[[RoundSummary], None],
    ciphertext_count: int | None = None,
    records: Records | None = None,
    revoked: Callable[[], RevocationList | None] = lambda: None,
    may_go_on: Callable[[], bool] = lambda: True,
) -> ServerApp:
    """Make the ServerApp that runs the rounds of one study; arguments as for `RoundLoop`.

    Guarantees:
        - No argument and no attribute of the app holds a secret key, a model or an update.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _: Context) -> None:
        absent = sorted(set(nodes.values()) - set(grid.get_node_ids()))
        if absent or set(nodes) != set(roster.participants):
            raise CohortMismatch(f"{len(absent)} nodes of the roster are not on the grid")
        RoundLoop(
            grid,
            roster=roster,
            terms=terms,
            nodes=nodes,
            aggregation=aggregation,
            rounds=rounds,
            rounds_per_epoch=rounds_per_epoch,
            deadline_seconds=deadline_seconds,
            on_round=on_round,
            ciphertext_count=ciphertext_count,
            records=records,
            revoked=revoked,
            may_go_on=may_go_on,
        ).run()

    return app
