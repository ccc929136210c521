"""A node as a program: NAME URL CERTIFICATES FILES SECONDS; ends orderly at SIGTERM. Started by the tests of the fleet."""

import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from flwr.app import ConfigRecord, Message, RecordDict

from hansa.participant.fleet import FleetConnection
from hansa.participant.session_apps import session_handler

name, url, certificates, files, seconds = sys.argv[1:]
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())


def join(message: Message, _: Any) -> Message:
    number = message.content.config_records["request"]["round"]
    with (Path(files) / "asked").open("a") as log:
        log.write(f"{number}\n")
    time.sleep(float(seconds))
    answer = ConfigRecord({"join": f"{name} {number}".encode()})
    return Message(RecordDict({"reply": answer}), reply_to=message)


FleetConnection(
    url,
    certificate=Path(certificates) / f"{name}.pem",
    key=Path(certificates) / f"{name}.key",
    authority=(Path(files) / "authority.der").read_bytes(),
    node_key=load_pem_private_key((Path(files) / "node.key").read_bytes(), None),
    folder=Path(files) / "node",
    report=lambda error: sys.stderr.write(f"{name}: {error.code}: {error.message}\n"),
).run(session_handler(lambda _: join, report=lambda _: None), stop)
