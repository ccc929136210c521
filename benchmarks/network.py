"""The network between participants and coordinator: speed of an upload, memory of the aggregator, what a cut costs.

Everything runs in separate processes on loopback, over mutual TLS: the aggregator with the process that adds, and each member. The
floor is a bare gRPC stream of messages of the same size over the same TLS, whose server counts bytes and does nothing else.
"""

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import grpc
import numpy as np

from hansa.coordinator.aggregator import AggregationService
from hansa.coordinator.ciphertext_adder import CiphertextAdder
from hansa.coordinator.data_plane import DataPlane, DataPlaneLimits
from hansa.federation.tls_authority import (
    issue_client_certificate,
    issue_server_certificate,
    new_tls_key,
    request_tls_certificate,
    to_pem,
)
from hansa.federation.tls_files import TlsFiles, TlsSource, channel_credentials, server_credentials
from hansa.federation.transfer import UPLOAD_CHUNK, channel_options, server_options
from hansa.participant.aggregator_client import GrpcAggregatorClient
from hansa.participant.coordinator_channel import CoordinatorChannel
from hansa.secure_agg.certificate_authority import CertificateAuthority
from hansa.secure_agg.certificates import utc_now
from hansa.secure_agg.ciphertext_format import SEEDED_BYTES, pack_coefficients
from hansa.secure_agg.cohort import CiphertextListHash
from hansa.secure_agg.expected import ExpectedHeader
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.messages import UploadHeader, sign_message
from hansa.secure_agg.parameters import SLOTS, Terms

MEMBERS = tuple(f"bank-{number}" for number in range(1, 5))
SESSION, STUDY = b"S" * 16, b"T" * 32
DISTINCT = 64  # ciphertexts of a member; an upload repeats them
LOWEST_PRIME = 1 << 59  # coefficients below it are below q as well

Row = dict[str, object]


# -- what all processes share ----------------------------------------------------------------------------


class Folder:
    """Keys, certificates and roster of the consortium, in files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        """Make everything."""
        begin = utc_now() - timedelta(hours=1)
        window = {"not_before": begin, "not_after": begin + timedelta(days=1)}
        authority = CertificateAuthority.create("benchmark", **window)
        (self.path / "authority.pem").write_bytes(to_pem(authority.certificate))
        identities = {name: Identity.generate() for name in MEMBERS}
        for name in ("coordinator", *MEMBERS):
            key = new_tls_key()
            request = request_tls_certificate(key, name)
            if name == "coordinator":
                made = issue_server_certificate(authority, request, name=name, hosts=["127.0.0.1"], **window)
            else:
                made = issue_client_certificate(authority, request, participant=name, **window)
                self._private(f"{name}.identity", identities[name].export())
            (self.path / f"{name}.pem").write_bytes(to_pem(made))
            self._private(f"{name}.key", key)
        roster = {name: identities[name].public.hex() for name in MEMBERS}
        (self.path / "roster.json").write_text(json.dumps(roster))

    def _private(self, name: str, secret: bytes) -> None:
        with open(os.open(self.path / name, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(secret)

    def tls(self, name: str) -> TlsSource:
        """Return a party's TLS material."""
        files = {"certificate": self.path / f"{name}.pem", "key": self.path / f"{name}.key"}
        return TlsSource(TlsFiles(authority=self.path / "authority.pem", **files))

    def roster(self) -> Roster:
        """Return the roster."""
        keys = json.loads((self.path / "roster.json").read_text())
        members = tuple((name, bytes.fromhex(key)) for name, key in sorted(keys.items()))
        return Roster(session_id=SESSION, study_id=STUDY, members=members)


def expected(count: int) -> ExpectedHeader:
    """Say what headers must say."""
    hashes = dict.fromkeys(("cohort_hash", "he_key_id", "state_tag", "previous_transcript"), b"x" * 32)
    return ExpectedHeader(**hashes, ciphertext_count=count)


class Upload(Sequence[bytes]):
    """Ciphertexts of the right form, a few of them again and again; it knows when the last one was read."""

    def __init__(self, count: int) -> None:
        draws = np.random.default_rng()
        self._distinct = [
            draws.bytes(64) + pack_coefficients(draws.integers(0, LOWEST_PRIME, SLOTS, dtype=np.uint64))
            for _ in range(min(DISTINCT, count))
        ]
        self._count, self.read_at = count, 0.0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place):  # type: ignore[no-untyped-def, override]
        """Give one ciphertext, or some."""
        self.read_at = time.monotonic()
        if isinstance(place, slice):
            return [
                self._distinct[index % len(self._distinct)] for index in range(*place.indices(self._count))
            ]
        return self._distinct[place % len(self._distinct)]

    def list_hash(self) -> bytes:
        """Return what the header signs."""
        running = CiphertextListHash()
        for place in range(self._count):
            running.update(self._distinct[place % len(self._distinct)])
        return running.digest()


def peak_bytes(process: int | None) -> int:
    """Largest resident memory of a process so far."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


# -- the processes ---------------------------------------------------------------------------------------


def run_aggregator(folder: Folder, count: int) -> None:
    """Serve one attempt; on a line of input close the roster and say what it took."""
    roster = folder.roster()
    with CiphertextAdder(spool_folder=folder.path) as adder:
        service = AggregationService(
            roster, Terms(participants=len(MEMBERS)), new_sums=adder.begin, results_folder=folder.path
        )
        service.begin(1, 1, 0, MEMBERS, expected(count))
        plane = DataPlane(
            host="127.0.0.1",
            port=0,
            tls=folder.tls("coordinator"),
            revoked=lambda: None,
            report=lambda error: print(repr(error), file=sys.stderr),
            limits=DataPlaneLimits(),
        )
        plane.aggregator.open_session(service, roster)
        with plane:
            print(plane.server.bound.port, flush=True)
            if not sys.stdin.readline():
                return
            with suppress(Exception):
                service.close()
            own, worker = peak_bytes(os.getpid()), peak_bytes(adder.process_id)
            print(json.dumps({"own": own, "worker": worker, "uplink": service.uplink_bytes}), flush=True)


def run_member(folder: Folder, count: int, name: str, port: int) -> None:
    """Upload once; say how long it took to send, and until it was added."""
    ciphertexts = Upload(count)
    known = expected(count)
    header = UploadHeader(
        session=SESSION,
        study=STUDY,
        epoch=1,
        sender=name,
        round=1,
        attempt=0,
        ciphertext_list_hash=ciphertexts.list_hash(),
        ledger_head=bytes(40),
        **{field: getattr(known, field) for field in known.__slots__},
    )
    signed = sign_message(Identity.load((folder.path / f"{name}.identity").read_bytes()), header)
    channel = CoordinatorChannel(f"127.0.0.1:{port}", tls=folder.tls(name), participant=name)
    client = GrpcAggregatorClient(channel, SESSION)
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.monotonic()
    client.upload(1, 0, signed, ciphertexts)
    ended = time.monotonic()
    print(json.dumps({"sent": ciphertexts.read_at - started, "added": ended - started}), flush=True)


def run_floor(folder: Folder) -> None:
    """Count the bytes of a stream."""
    handler = grpc.stream_unary_rpc_method_handler(lambda parts, _: str(sum(map(len, parts))).encode())
    server = grpc.server(ThreadPoolExecutor(2), options=server_options(4))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("floor", {"Take": handler})])
    port = server.add_secure_port("127.0.0.1:0", server_credentials(folder.tls("coordinator")))
    server.start()
    print(port, flush=True)
    sys.stdin.readline()
    server.stop(0).wait()


@contextmanager
def started(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Run this script in another process."""
    command = [sys.executable, __file__, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.stdin.close()  # type: ignore[union-attr]
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def line(process: "subprocess.Popen[str]") -> str:
    """Read a line of a process."""
    return process.stdout.readline().strip()  # type: ignore[union-attr]


def go(process: "subprocess.Popen[str]") -> None:
    """Send a process its signal."""
    process.stdin.write("\n")  # type: ignore[union-attr]
    process.stdin.flush()  # type: ignore[union-attr]


class Proxy:
    """Passes connections on and counts what goes up; cuts the first one after so many bytes."""

    def __init__(self, port: int, cut_after: int) -> None:
        self._to, self._cut_after = port, cut_after
        self.up: list[int] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._to))
            self.up.append(0)
            number = len(self.up) - 1
            for pair in ((client, server, number), (server, client, None)):
                threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, number: int | None) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
                if number is not None:
                    self.up[number] += len(data)
                    if number == 0 and self.up[0] >= self._cut_after:
                        break
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


# -- rows ------------------------------------------------------------------------------------------------


def row(metric: str, unit: str, value: float, *, better: str, floor: float | None, goal: float | None) -> Row:
    """Make a row."""
    found = {"metric": metric, "unit": unit, "better": better, "hansa": value, "peers": {}}
    return {**found, "floor": floor, "goal": goal, "conditions": ""}


def measure_floor(folder: Folder, total_bytes: int) -> float:
    """Return MB/s of a bare stream, the second of two."""
    message = os.urandom(UPLOAD_CHUNK * SEEDED_BYTES)
    with started("--role", "floor", "--folder", folder.path) as server:
        port = int(line(server))
        credentials = channel_credentials(folder.tls(MEMBERS[0]).material())
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=channel_options()) as channel:
            take, seconds = channel.stream_unary("/floor/Take"), 0.0
            for _ in range(2):
                begun = time.monotonic()
                take(message for _ in range(total_bytes // len(message)))
                seconds = time.monotonic() - begun
        go(server)
    return total_bytes / seconds / 1e6


def measure_uploads(
    folder: Folder, members: Sequence[str], upload_bytes: int
) -> tuple[list[dict[str, float]], dict[str, int]]:
    """Let members upload at the same time; return their times and the aggregator's memory."""
    count = upload_bytes // SEEDED_BYTES
    with ExitStack() as stack:
        server = stack.enter_context(
            started("--role", "aggregator", "--folder", folder.path, "--count", count)
        )
        port = line(server)
        arguments = ("--role", "member", "--folder", folder.path, "--count", count, "--port", port)
        processes = [stack.enter_context(started(*arguments, "--member", name)) for name in members]
        for process in processes:
            line(process)
        for process in processes:
            go(process)
        times = [json.loads(line(process)) for process in processes]
        go(server)
        return times, json.loads(line(server))


def rows_of_speed(folder: Folder, upload_bytes: int) -> list[Row]:
    """Measure one member alone."""
    floor = measure_floor(folder, upload_bytes)
    times, _ = measure_uploads(folder, MEMBERS[:1], upload_bytes)
    megabytes = upload_bytes / 1e6
    what = f"of one upload of {megabytes:.0f} MB"
    return [
        row(
            f"speed {what}, sent",
            "MB/s",
            megabytes / times[0]["sent"],
            better="higher",
            floor=floor,
            goal=100.0,
        ),
        row(
            f"speed {what}, sent and added",
            "MB/s",
            megabytes / times[0]["added"],
            better="higher",
            floor=floor,
            goal=None,
        ),
    ]


def rows_of_memory(folder: Folder, upload_bytes: int) -> list[Row]:
    """Measure four members at the same time."""
    times, found = measure_uploads(folder, MEMBERS, upload_bytes)
    what = f"four uploads of {upload_bytes / 1e6:.0f} MB at the same time"
    memory = (found["own"] + found["worker"]) / 1e6
    speed = len(MEMBERS) * upload_bytes / max(times_of["added"] for times_of in times) / 1e6
    if found["uplink"] < len(MEMBERS) * (upload_bytes // SEEDED_BYTES) * SEEDED_BYTES:
        raise SystemExit("not all uploads were added")
    return [
        row(
            f"aggregator's resident memory, both processes, {what}",
            "MB",
            memory,
            better="lower",
            floor=None,
            goal=300.0,
        ),
        row(f"speed of {what}, together, added", "MB/s", speed, better="higher", floor=None, goal=None),
    ]


def rows_of_resume(folder: Folder, upload_bytes: int) -> list[Row]:
    """Cut an upload at nine tenths and count what is sent after it."""
    count = upload_bytes // SEEDED_BYTES
    with started("--role", "aggregator", "--folder", folder.path, "--count", count) as server:
        proxy = Proxy(int(line(server)), int(0.9 * upload_bytes))
        arguments = ("--role", "member", "--folder", folder.path, "--count", count, "--port", proxy.port)
        with started(*arguments, "--member", MEMBERS[0]) as member:
            line(member)
            go(member)
            line(member)
        go(server)
        if json.loads(line(server))["uplink"] < count * SEEDED_BYTES:
            raise SystemExit("the upload was not added")
    share = sum(proxy.up[1:]) / upload_bytes * 100
    what = f"sent after a cut at 90 % of an upload of {upload_bytes / 1e6:.0f} MB"
    return [row(what, "% of it", share, better="lower", floor=10.0, goal=15.0)]


def rows_of_rounds(path: Path, *, quick: bool) -> list[Row]:
    """Measure rounds between a coordinator and five agents, all of them processes; see `network_rounds.py`."""
    script = Path(__file__).with_name("network_rounds.py")
    command = [sys.executable, "-P", str(script), "--json", str(path), *(["--quick"] if quick else [])]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows: list[Row] = json.loads(path.read_text())["rows"]
    return rows


def conditions() -> str:
    """Say what the numbers depend on."""
    return (
        f"loopback, mutual TLS 1.3, separate processes, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start,"
        f" Python {platform.python_version()}, grpcio {grpc.__version__}, spool on {tempfile.gettempdir()!r}"
    )


def main() -> None:
    """Run the benchmark, or one of its processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--quick", action="store_true", help="50 and 200 MB in place of 500 MB, in under 60 s"
    )
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--role", choices=("aggregator", "member", "floor"), help=argparse.SUPPRESS)
    for name, kind in (("folder", Path), ("count", int), ("port", int), ("member", str)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        folder = Folder(options.folder)
        if options.role == "aggregator":
            run_aggregator(folder, options.count)
        elif options.role == "member":
            run_member(folder, options.count, options.member, options.port)
        else:
            run_floor(folder)
        return
    upload_bytes, speed_bytes = (50_000_000, 200_000_000) if options.quick else (500_000_000, 500_000_000)
    where = conditions()
    with tempfile.TemporaryDirectory(prefix="hansa-network-") as path:
        folder = Folder(Path(path))
        folder.make()
        rows = rows_of_speed(folder, speed_bytes)
        rows += rows_of_memory(folder, upload_bytes)
        rows += rows_of_resume(folder, speed_bytes)
        rows += rows_of_rounds(Path(path) / "rounds.json", quick=options.quick)
    for found in rows:
        found["conditions"] = found["conditions"] or where
        goal = "" if found["goal"] is None else f"goal {found['goal']:g}"
        floor = "" if found["floor"] is None else f"floor {found['floor']:.4g}"
        print(f"{found['metric']!s:86} {found['hansa']:9.4g} {found['unit']!s:16} {floor:12} {goal}")
        for name, value in dict(found["peers"]).items():
            print(f"    {name:82} {value:9.4g} {found['unit']!s:16}")
    print(where)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
