"""Where a command listens."""

import socket


def bind(host: str, port: int) -> socket.socket:
    """A socket of this place, which no other command gets before there is anything to listen for.

    Raises:
        ValueError: if the place is taken, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    # The place of a server that has just ended can be had again, ...
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ValueError(
            f"Nothing can listen on {host}, port {port} ({error.strerror}); choose another --port "
            "or --host."
        ) from error
    # ... but not that of one which does not listen yet: Linux would give it to both.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return listener


def listen(listener: socket.socket) -> None:
    """Take connections at a bound place."""
    # Connections inherit it, and hold the place for a minute after their end without it.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.listen()
