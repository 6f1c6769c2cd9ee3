"""Ports of loopback that nobody listens on, and that stay a test's own."""

import socket


def kept_port(host: str = "127.0.0.1") -> socket.socket:
    """Bound, and never listening: who connects is refused, the kernel gives the port to nobody else, and a server of
    the test may listen there while this is open."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host, 0))
    return bound
