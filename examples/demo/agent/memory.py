"""Searches the memory of a running process for secrets (Linux: /proc/PID/mem)."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 1 << 22


@dataclass(frozen=True)
class MemorySearch:
    """How many bytes were read, and which of the secrets are among them."""

    bytes_read: int
    found: frozenset[str]


def search_memory(pid: int, secrets: Iterable[str]) -> MemorySearch:
    """Read whatever the process has in its memory. Raises PermissionError where the system forbids it."""
    needles = {secret: secret.encode() for secret in secrets}
    overlap = max(map(len, needles.values())) - 1
    read, found = 0, set[str]()
    for block in _blocks(pid, overlap):
        read += len(block)
        found |= {secret for secret, needle in needles.items() if needle in block}
    return MemorySearch(read, frozenset(found))


def _blocks(pid: int, overlap: int) -> Iterator[bytes]:
    """The process's memory in pieces, each with the end of the one before: a secret may lie across two."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for begin, end in _readable(pid):
            kept, at = b"", begin
            while at < end:
                with suppress(OSError):  # a page that the kernel keeps for itself
                    memory.seek(at)
                    kept = kept[-overlap:] + memory.read(min(_BLOCK, end - at))
                    yield kept
                at += _BLOCK


def _readable(pid: int) -> Iterator[tuple[int, int]]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, permissions, *more = line.split(maxsplit=5)
        if permissions.startswith("r") and more[-1:] != ["[vvar]"]:
            begin, end = addresses.split("-")
            yield int(begin, 16), int(end, 16)
