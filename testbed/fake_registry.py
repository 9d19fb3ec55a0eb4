"""`python -m testbed.fake_registry ARCHIVE`: one image, NAME:1, by the OCI distribution API on a loopback port.

The image has one layer, the tar archive given. Prints `READY PORT DIGEST`. `--rate` bytes a second make a pull last.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAME = "syshax/unit"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
PIECE = 64 * 1024


def digest_of(data: bytes) -> str:
    """As the API names content."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Image:
    """Manifest and blobs by digest, with their content types."""

    def __init__(self, archive: bytes) -> None:
        layer = gzip.compress(archive, 1, mtime=0)
        config = json.dumps(
            {
                "architecture": "amd64", "os": "linux", "config": {},
                "rootfs": {"type": "layers", "diff_ids": [digest_of(archive)]},
            }
        ).encode()  # fmt: skip
        described = [
            {"mediaType": kind, "size": len(data), "digest": digest_of(data)}
            for kind, data in ((CONFIG, config), (LAYER, layer))
        ]
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described[0], "layers": described[1:]}
        self.manifest = json.dumps(manifest).encode()
        self.digest = digest_of(self.manifest)
        self.blobs: dict[str, tuple[str, bytes]] = {digest_of(data): (CONFIG, data) for data in (config, layer)}


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of what a pull needs."""

    protocol_version = "HTTP/1.1"
    image: Image
    options: argparse.Namespace

    def do_HEAD(self) -> None:
        """Only the headers."""
        self.do_GET()

    def do_GET(self) -> None:
        """/v2/, /v2/NAME/manifests/REFERENCE, /v2/NAME/blobs/DIGEST."""
        base = f"/v2/{NAME}"
        if self.path == "/v2/":
            return self._answer(200, "application/json", b"{}")
        if self.path in (f"{base}/manifests/1", f"{base}/manifests/{self.image.digest}"):
            return self._answer(200, MANIFEST, self.image.manifest)
        kind, data = self.image.blobs.get(self.path.replace(f"{base}/blobs/", ""), ("", b""))
        if kind:
            return self._answer(200, "application/octet-stream", data)
        errors = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
        self._answer(404, "application/json", json.dumps(errors).encode())

    def _answer(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Docker-Content-Digest", digest_of(data))
        self.send_header("Docker-Distribution-API-Version", "registry/2.0")
        self.end_headers()
        if self.command == "GET":
            self._send(data)

    def _send(self, data: bytes) -> None:
        for at in range(0, len(data), PIECE):
            self.wfile.write(data[at : at + PIECE])
            if self.options.rate and len(data) > PIECE:
                time.sleep(PIECE / self.options.rate)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def main() -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("archive", type=Path)
    parser.add_argument("--rate", type=float, default=0.0, help="bytes a second of a blob")
    Handler.options = parser.parse_args()
    Handler.image = Image(Handler.options.archive.read_bytes())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print("READY", server.server_address[1], Handler.image.digest, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
