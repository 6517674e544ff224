"""Where servers listen."""

from __future__ import annotations

import os
import socket

from dynosim.errors import ConfigError


def check_address(host: str, port: int) -> None:
    """Raise ConfigError where nothing can listen: servers would log that, and exit with a code of their own."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: {os.strerror(error.errno or 0)}") from error
