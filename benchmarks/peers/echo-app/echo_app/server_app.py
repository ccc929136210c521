"""Sends a thousand floats to every node, waits for all, and says how long that took."""

import json
import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    wanted, rounds = int(context.run_config["nodes"]), int(context.run_config["rounds"])
    while len(list(grid.get_node_ids())) < wanted:
        time.sleep(0.5)
    for _ in range(rounds):
        began = time.monotonic()
        content = RecordDict({"arrays": ArrayRecord([np.zeros(1000, dtype=np.float32)])})
        sent = [Message(content, node, "train") for node in grid.get_node_ids()]
        replies = list(grid.send_and_receive(sent, timeout=120))
        fine = sum(not reply.has_error() for reply in replies)
        print(json.dumps({"echoed": fine, "seconds": time.monotonic() - began}), flush=True)
