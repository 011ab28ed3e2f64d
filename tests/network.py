"""A network of a command's own, to see what the command sends.

The command runs in a network namespace whose only way out ends in a second interface of the same namespace. Names are
answered by a DNS server in the namespace, which writes down what is asked. So a connection to anywhere is tried in
earnest, is counted as a packet, and leaves nothing.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# RFC 5737: addresses for documentation, which belong to nobody
ADDRESS = "192.0.2.1"
GATEWAY = "192.0.2.2"
ANSWER = socket.inet_aton("198.51.100.7")
COMMANDS = (
    "ip link set lo up",
    "ip link add out type veth peer name beyond",
    "sysctl -qw net.ipv6.conf.all.disable_ipv6=1",
    f"ip addr add {ADDRESS}/24 dev out",
    "ip link set beyond up",
    "ip link set out up arp off",
    f"ip neigh replace {GATEWAY} lladdr 02:00:00:00:00:02 dev out",
    f"ip route add default via {GATEWAY}",
)


@dataclass(frozen=True)
class Traffic:
    """What a command did: its exit code and output, the names it looked up, and the packets it sent beyond loopback."""

    returncode: int
    output: str
    lookups: tuple[str, ...]
    packets: int


def can_isolate() -> bool:
    """Whether this machine lets us make network namespaces."""
    if not (sys.platform == "linux" and shutil.which("ip") and shutil.which("unshare")):
        return False
    return subprocess.run([*_unshare(), "true"], capture_output=True).returncode == 0


def run_isolated(command: Sequence[str], environment: Mapping[str, str], folder: Path, timeout_s: float) -> Traffic:
    """Run a command in a network namespace of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        done = subprocess.run(
            [*_unshare(), sys.executable, os.path.abspath(__file__), scratch, str(folder), *command],
            env={"PATH": os.environ["PATH"], "COMMAND_ENVIRONMENT": json.dumps(dict(environment))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        if not report.exists():
            raise RuntimeError(f"the namespace could not be set up: {done.stdout}")
        seen = json.loads(report.read_text())
    return Traffic(seen["returncode"], done.stdout, tuple(seen["lookups"]), seen["packets"])


def _unshare() -> list[str]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--net", "--mount", "--"]


def _serve_dns(listener: socket.socket, lookups: list[str]) -> None:
    while True:
        message, sender = listener.recvfrom(4096)
        labels, at = [], 12
        while at < len(message) and message[at]:
            labels.append(message[at + 1 : at + 1 + message[at]].decode("ascii", "replace"))
            at += 1 + message[at]
        lookups.append(".".join(labels))
        question = message[12 : at + 5]
        is_ipv4 = question[-4:-2] == b"\0\x01"
        answer = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04" + ANSWER if is_ipv4 else b""
        header = message[:2] + b"\x81\x80\0\x01" + (b"\0\x01" if is_ipv4 else b"\0\0") + b"\0\0\0\0"
        listener.sendto(header + question + answer, sender)


def _packets_sent() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "out":
            return int(counts.split()[9])
    raise RuntimeError("there is no interface 'out'")


def _main(scratch: str, folder: str, *command: str) -> None:
    for line in COMMANDS:
        subprocess.run(line.split(), check=True)
    for path, text in (("/etc/resolv.conf", "nameserver 127.0.0.1\n"), ("/etc/nsswitch.conf", "hosts: files dns\n")):
        if os.path.exists(path):
            ours = Path(scratch) / os.path.basename(path)
            ours.write_text(text)
            subprocess.run(["mount", "--bind", str(ours), os.path.realpath(path)], check=True)
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("127.0.0.1", 53))
    lookups: list[str] = []
    threading.Thread(target=_serve_dns, args=(listener, lookups), daemon=True).start()
    before = _packets_sent()
    done = subprocess.run(command, env=json.loads(os.environ["COMMAND_ENVIRONMENT"]), cwd=folder)
    seen = {"returncode": done.returncode, "lookups": lookups, "packets": _packets_sent() - before}
    (Path(scratch) / "report.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    _main(*sys.argv[1:])
