"""What a daemon tells its service manager (sd_notify(3)): ready, status, alive, reloading, stopping.

Datagrams to the socket that `NOTIFY_SOCKET` names; without it every call does nothing. The protocol is that of systemd 252.
"""

import os
import socket
import time
from collections.abc import Mapping

_MOST_STATUS = 200


class ServiceManager:
    """The way to the service manager.

    Args:
        environment: Where the socket and the watchdog's interval are named.

    Attributes:
        watchdog_seconds: How often `alive` must be called; half of what the manager waits for. None if it does not wait.

    Guarantees:
        - Nothing is raised, whatever the socket is: a daemon does not end because nobody listens.
        - No value but the constants here and a status of one line is sent.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        wait = environment.get("WATCHDOG_USEC", "")
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_seconds = int(wait) / 2e6 if wait.isdigit() and int(wait) > 0 and is_ours else None

    def ready(self, status: str) -> None:
        """Say that the daemon serves."""
        self._send(f"READY=1\nSTATUS={_line(status)}")

    def status(self, status: str) -> None:
        """Say in a line what the daemon does."""
        self._send(f"STATUS={_line(status)}")

    def alive(self) -> None:
        """Say that the daemon is not stuck."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """Say that the configuration is read again; then `ready`."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Say that the daemon ends what it does and stops."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto(message.encode(), self._address)
        except OSError:
            return


def _line(status: str) -> str:
    return " ".join(status.split())[:_MOST_STATUS]
