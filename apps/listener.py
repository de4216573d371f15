"""Where a command listens."""

import socket


def bind(host: str, port: int) -> socket.socket:
    """A socket of this place, before there is anything to listen for.

    Raises:
        ValueError: if the place is taken, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ValueError(
            f"Nothing can listen on {host}, port {port} ({error.strerror}); choose another --port "
            "or --host."
        ) from error
    return listener
