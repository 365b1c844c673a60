"""Slow links between processes of one machine: a network namespace each, joined by a bridge.

Every namespace has one end of a virtual cable (veth); the other is in a bridge, in a namespace of
its own, so that nothing is added to the machine's network. Token buckets on both ends set the rate.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class NotPermitted(Exception):
    """What is missing on this machine."""


@dataclass(frozen=True)
class Host:
    """One end of the network: run commands under `prefix`; it has `interface` and `address`."""

    prefix: tuple[str, ...]
    address: str
    interface: str = "eth0"


def _tool(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[0]
        raise NotPermitted(f"`{' '.join(words)}` failed: {said}")


@contextmanager
def throttled(hosts: int, mbit: float) -> Iterator[list[Host]]:
    """Yields `hosts` hosts whose links send and receive at `mbit` Mbit/s; all is gone afterwards.

    Raises:
        NotPermitted: ip or tc is missing, or may not be used.
    """
    for name in ("ip", "tc"):
        if shutil.which(name) is None:
            raise NotPermitted(f"there is no `{name}` (Debian's iproute2)")
    name = f"undertow-{os.getpid()}"
    hub, made = f"{name}-hub", []
    rate = ("root", "tbf", "rate", f"{mbit}mbit", "burst", "64kb", "latency", "400ms")
    # An end by a signal is an exception, too: what was made is removed on the way out.
    before = signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(143)))
    try:
        for namespace in (hub, *(f"{name}-{host}" for host in range(hosts))):
            _tool("ip", "netns", "add", namespace)
            made.append(namespace)
        _tool("ip", "-n", hub, "link", "add", "bridge", "up", "type", "bridge")
        found = []
        for index, own in enumerate(made[1:]):
            host, port = Host(("ip", "netns", "exec", own), f"10.77.0.{index + 1}"), f"port{index}"
            ends = ("type", "veth", "peer", "name", host.interface, "netns", own)
            _tool("ip", "-n", hub, "link", "add", port, *ends)
            _tool("ip", "-n", hub, "link", "set", port, "master", "bridge", "up")
            _tool("ip", "-n", own, "address", "add", f"{host.address}/24", "dev", host.interface)
            _tool("ip", "-n", own, "link", "set", host.interface, "up")
            _tool("ip", "-n", own, "link", "set", "lo", "up")
            _tool("tc", "-n", own, "qdisc", "add", "dev", host.interface, *rate)
            _tool("tc", "-n", hub, "qdisc", "add", "dev", port, *rate)
            found.append(host)
        yield found
    finally:
        # A cable goes with the namespace of either of its ends.
        for namespace in reversed(made):
            subprocess.run(("ip", "netns", "delete", namespace), check=False)
        signal.signal(signal.SIGTERM, before)
