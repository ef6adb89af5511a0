"""Keys for one run: made by Dask, known to its scheduler, workers and client, and worth nothing afterwards."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from distributed import Security

if TYPE_CHECKING:
    from pathlib import Path

CA, CERT, KEY = "ca.pem", "cert.pem", "key.pem"


def temporary_pem() -> dict[str, str]:
    """Fresh keys as text: names of files and what they hold. The certificate is its own authority."""
    made = Security.temporary()
    return {CA: made.tls_ca_file, CERT: made.tls_client_cert, KEY: made.tls_client_key}


def temporary_files(folder: Path) -> Security:
    """Fresh keys in files that only their owner can read, for workers that start elsewhere.

    Args:
        folder: Private already.
    """
    for name, text in temporary_pem().items():
        with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    ca, cert, key = (str(folder / name) for name in (CA, CERT, KEY))
    return Security(
        require_encryption=True,
        tls_ca_file=ca,
        **{
            f"tls_{role}_{kind}": path
            for role in ("client", "scheduler", "worker")
            for kind, path in (("cert", cert), ("key", key))
        },
    )
