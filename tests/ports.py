"""Where processes of a test can meet."""

import socket


def free_port():
    """A port of this machine that nobody listens on, as text."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
