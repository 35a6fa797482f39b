"""Where a server listens: whether others reach it there, whether the port is free, and stays so while a model loads."""

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterator


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. Raises `ValueError` for one that there is not."""
    if not host:  # all addresses, for whoever listens
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise ValueError(f"host: there is no address '{host}': {error}.") from None
    return all(ipaddress.ip_address(place[4][0].partition("%")[0]).is_loopback for place in found)


def free_port(host: str, port: int) -> int:
    """The port, or with 0 one that is free. Raises `ValueError` where it is taken, or the address is not ours."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            found.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _taken(port, f"on {host}") from None
            raise ValueError(f"host: cannot listen at {host}, port {port}: {error.strerror}.") from None
        return found.getsockname()[1]


@contextlib.contextmanager
def held(port: int) -> Iterator[None]:
    """Within it no other `suite serve` begins at this port. Raises `ValueError` where one has begun already.

    A server listens once its model is loaded, and until then all others find the port free. What is held instead is a
    name that lives in the kernel, where ports do, and ends with this process, whatever ends that.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as name:
        try:
            name.bind(f"\0suite-serve-{port}")
        except OSError as error:  # any other: only Linux has such names; elsewhere the server itself says it, later
            if error.errno == errno.EADDRINUSE:
                raise _taken(port, "by another `suite serve`, which may still be loading") from None
        yield


def _taken(port: int, how: str) -> ValueError:
    return ValueError(
        f"port: {port} is taken {how}. Take another one, such as {port % 65535 + 1}, or 0 for any that is free."
    )


def reachable(host: str) -> str:
    """Where this machine finds what listens at an address."""
    at = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{at}]" if ":" in at else at
