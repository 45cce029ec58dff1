"""Find the network interface that leads to another machine: `python -m gemma_ft.launching.interface HOST`.

The nodes of a cluster run this, since names like eth0 or ens5 are theirs alone to know.
"""

import socket
import sys
import time

import psutil  # type: ignore[import-untyped]

_PORT = 9
"""Any port: connecting a datagram socket asks the routing table and sends nothing."""
_WAIT_SECONDS = 600.0
"""How long a name may stay unknown: it can be that of a machine that still starts."""
_ASK_AGAIN_SECONDS = 2.0


def find_interface(host: str) -> str:
    """Return the name of the interface on the way to a host.

    Args:
        host: Name or address; one of this machine's own leads to the interface that holds it.

    Raises:
        OSError: No name server knows the host, or nothing leads there.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, _PORT, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == own for entry in addresses):
            return str(name)
    raise OSError(f"no interface holds {own}, the address of this machine towards {host}")


def main(host: str) -> int:
    """Print the interface, waiting for a host that has no address yet.

    Returns:
        The exit code: 1 where there is no way to the host.
    """
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            print(find_interface(host))
            return 0
        except socket.gaierror as error:
            if time.monotonic() > deadline:
                print(f"error: {host} has no address ({error.strerror}).", file=sys.stderr)
                return 1
        except OSError as error:
            print(f"error: {error}. Set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME.", file=sys.stderr)
            return 1
        time.sleep(_ASK_AGAIN_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
