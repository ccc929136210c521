"""Flower's SuperLink as a program of its own that ends with whoever started it; started by `superlink.py`.

Its standard input is a pipe that only its parent holds. When the parent dies, whatever way, the pipe closes and this
process ends. The kernel's own signal for that (PR_SET_PDEATHSIG) comes already when the *thread* ends that started
the process, and that thread may be any one that asked for a SuperLink.
"""

import os
import resource
import sys
import threading


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(0)


def main() -> None:
    """Run the SuperLink with the arguments of the command line."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the secret
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from flwr.superlink.cli import flower_superlink  # noqa: PLC0415 - takes seconds; the watch comes first

    flower_superlink()


if __name__ == "__main__":
    main()
