"""What an instructor needs besides a machine that is ready: an address for the room's Hub, a free port, the bundle."""

import socket
from collections.abc import Iterator

import psutil

from ftlib.machine import OK, Check
from ftlib.machine.bundle import BUNDLE
from ftlib.machine.install import WHEELS
from ftlib.session.session import project_root

PORT = 8765  # of `ftlib hub`, unless it is told another
LOCAL = ("127.", "169.254.")  # how addresses begin that nobody else reaches


def rows() -> Iterator[Check]:
    """What a room needs of the machine that serves it."""
    interfaces = [each for found in psutil.net_if_addrs().values() for each in found if each.family == socket.AF_INET]
    addresses = [each.address for each in interfaces if not each.address.startswith(LOCAL)]
    yield Check("room's address", ", ".join(addresses) or "none", OK if addresses else "join the room's network")
    for address in addresses[:1]:
        verdict = OK if _is_free(address) else "end what uses it, or name another with --port"
        yield Check("room's port", f"{PORT}", verdict)
    wheels = project_root() / BUNDLE / WHEELS
    systems = sorted(path.stem.rpartition("-")[2] for path in wheels.glob("torch-*.whl"))
    verdict = OK if systems else "run `make bundle` on a good network"
    yield Check("bundle", ", ".join(systems) or "none", verdict)


def _is_free(address: str) -> bool:
    try:
        socket.create_server((address, PORT)).close()
    except OSError:
        return False
    return True
