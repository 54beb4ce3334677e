"""What names the content of a file, or of bytes."""

import hashlib
from pathlib import Path


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def hash63(content: bytes) -> int:
    """63 bits that fit into an int64, the same in every run and on every machine."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), 'big') >> 1
