"""What an instructor needs besides a machine that is ready: an address for the room's Hub, a free port, the bundle."""

import socket
from collections.abc import Iterator

import psutil

from ftlib.machine.bundle import BUNDLE
from ftlib.machine.install import WHEELS
from ftlib.session.session import project_root

PORT = 8765  # of `ftlib hub`, unless it is told another
LOCAL = ("127.", "169.254.")  # how addresses begin that nobody else reaches
OK = "ok"


def rows() -> Iterator[tuple[str, str, str]]:
    """Check, found and verdict, as the doctor's rows are."""
    interfaces = [each for found in psutil.net_if_addrs().values() for each in found if each.family == socket.AF_INET]
    addresses = [each.address for each in interfaces if not each.address.startswith(LOCAL)]
    yield "room's address", ", ".join(addresses) or "none", OK if addresses else "join the room's network"
    for address in addresses[:1]:
        yield "room's port", f"{PORT}", OK if _is_free(address) else "end what uses it, or name another with --port"
    wheels = project_root() / BUNDLE / WHEELS
    systems = sorted(path.stem.rpartition("-")[2] for path in wheels.glob("torch-*.whl"))
    yield "bundle", ", ".join(systems) or "none", OK if systems else "run `make bundle` on a good network"


def _is_free(address: str) -> bool:
    try:
        socket.create_server((address, PORT)).close()
    except OSError:
        return False
    return True
