"""Anchors: where checkpoints of the audit log are kept outside its database.

A witness (c2sp.org/tlog-witness) signs a checkpoint that extends what it has signed; a bucket with object
lock keeps its text; a timestamp authority (RFC 3161) says when it was there. They contradict whoever rewrites
the log, or puts an older copy of the database back.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

import httpx2
from cryptography import x509

from evergrant_server.audit.checkpoints.notes import WitnessKey, hash_lines
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import Failure
from evergrant_server.egress import Egress
from evergrant_server.store.audit.checkpoints import WITNESS, Anchor, SignedTree

_ANSWER_BYTES = 64 * 1024
_SIZE = "text/x.tlog.size"
_STORE_LIMIT_S = 10.0
_TAKEN = ("PreconditionFailed", "ConditionalRequestConflict")

PathFrom = Callable[[int], Awaitable[list[bytes]]]  # that the checkpoint extends the tree of this size


class AnchorError(Exception):
    """The anchor hasn't kept the checkpoint: it is away, or refuses who asks."""


class AnchorRefusal(AnchorError):
    """The anchor has kept another story: the log was rewritten, or an older copy was put back."""


class AnchorPort(Protocol):
    """One anchor. `name` is its row's, `every` how often it is given a new checkpoint at most."""

    name: str
    every: timedelta

    async def keep(self, checkpoint: SignedTree, before: Anchor | None, path_from: PathFrom) -> bytes:
        """Have the checkpoint kept; returns the evidence. Raises AnchorError, AnchorRefusal."""
        ...


class WitnessAnchor:
    """A witness of C2SP's protocol. The evidence is its line of signature."""

    def __init__(self, egress: Egress, key: WitnessKey, url: str, every: timedelta) -> None:
        self.name, self.every = f"{WITNESS}{key.name}", every
        self._egress, self._key, self._url = egress, key, url

    async def keep(self, checkpoint: SignedTree, before: Anchor | None, path_from: PathFrom) -> bytes:
        size = 0 if before is None else before.size
        for _ in range(2):  # the witness says itself what it has signed last
            response = await self._asked(checkpoint, size, path_from)
            if response.status_code != 409 or response.headers.get("content-type") != _SIZE:
                break
            size = _number(response.text)
            if size > checkpoint.size:
                why = f"it has signed a log of {size} heads, and this one has {checkpoint.size}"
                raise AnchorRefusal(f"{self.name}: {why}")
        if response.status_code == 422:
            raise AnchorRefusal(f"{self.name}: {response.text.strip()[:200]}")
        if response.status_code != 200:
            raise AnchorError(f"{self.name}: status {response.status_code}")
        line = response.text.splitlines(keepends=True)[:1]
        if not line or not self._key.has_signed(checkpoint.note, line[0]):
            raise AnchorError(f"{self.name}: the answer isn't signed by the key in the settings")
        return line[0].encode()

    async def _asked(self, checkpoint: SignedTree, size: int, path_from: PathFrom) -> httpx2.Response:
        body = f"old {size}\n{hash_lines(await path_from(size))}\n{checkpoint.note}"
        url = f"{self._url}/add-checkpoint"
        return await _posted(self._egress, self.name, url, body.encode(), "text/plain")


class ObjectStoreAnchor:
    """A bucket with object lock (S3): a checkpoint is an object that nobody can delete before its time."""

    def __init__(self, url: str, every: timedelta, clock: Clock) -> None:
        """`s3://BUCKET/PREFIX?days=400&region=…&endpoint=…`. Raises ValueError."""
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        if parts.scheme != "s3" or not parts.netloc or options.keys() - {"days", "region", "endpoint"}:
            raise ValueError("write s3://BUCKET/PREFIX?days=400, and region or endpoint where needed")
        self._days = timedelta(days=int(options.get("days", "400")))
        self.name, self.every = f"store {parts.netloc}", every
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self._region, self._endpoint = options.get("region"), options.get("endpoint")
        self._clock = clock
        self._opened: Any = None

    async def keep(self, checkpoint: SignedTree, before: Anchor | None, path_from: PathFrom) -> bytes:
        until = self._clock.now() + self._days
        try:
            return await asyncio.to_thread(self._put, checkpoint, until)
        except ImportError:
            raise AnchorError(f"{self.name}: install boto3 (the extra aws)") from None

    def _put(self, checkpoint: SignedTree, until: datetime) -> bytes:
        from botocore.exceptions import BotoCoreError, ClientError

        folder = f"{self._prefix}/" if self._prefix else ""
        key = f"{folder}{_origin_of(checkpoint)}/{checkpoint.size:019}"
        lock = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": until}
        try:
            client = self._client()
            try:
                body, once = checkpoint.note.encode(), {"IfNoneMatch": "*", "ChecksumAlgorithm": "SHA256"}
                kept = client.put_object(Bucket=self._bucket, Key=key, Body=body, **lock, **once)
            except ClientError as error:
                if error.response["Error"]["Code"] not in _TAKEN:
                    raise
                kept = client.get_object(Bucket=self._bucket, Key=key)
                text = kept["Body"].read(_ANSWER_BYTES).decode(errors="replace")
                if text.partition("\n\n")[0] != checkpoint.note.partition("\n\n")[0]:
                    raise AnchorRefusal(f"{self.name}: {key} is another tree of this size") from None
        except (BotoCoreError, ClientError) as error:
            code = error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__
            raise AnchorError(f"{self.name}: {code}") from None
        return json.dumps({"bucket": self._bucket, "key": key, "version": kept.get("VersionId")}).encode()

    def _client(self) -> Any:
        if self._opened is None:
            import boto3
            from botocore.config import Config

            limits = {"connect_timeout": _STORE_LIMIT_S, "read_timeout": _STORE_LIMIT_S}
            config = Config(**limits, retries={"total_max_attempts": 1})
            options = {"region_name": self._region, "endpoint_url": self._endpoint, "config": config}
            self._opened = boto3.Session().client("s3", **options)
        return self._opened


class TimestampAnchor:
    """A timestamp authority (RFC 3161). The evidence is its response, which names the time and is signed."""

    def __init__(self, egress: Egress, url: str, roots: Path, every: timedelta) -> None:
        """`roots`: PEM certificates that the authority's must lead to. Raises ValueError, OSError."""
        self.name, self.every = f"timestamp {urlsplit(url).hostname}", every
        self._egress, self._url = egress, url
        self._roots = x509.load_pem_x509_certificates(roots.read_bytes())

    async def keep(self, checkpoint: SignedTree, before: Anchor | None, path_from: PathFrom) -> bytes:
        try:
            from rfc3161_client import (
                TimestampRequestBuilder,
                VerificationError,
                VerifierBuilder,
                decode_timestamp_response,
            )
        except ImportError:
            raise AnchorError(f"{self.name}: install rfc3161-client (the extra timestamps)") from None
        message = checkpoint.note.encode()
        request = TimestampRequestBuilder().data(message).build()
        kind = "application/timestamp-query"
        response = await _posted(self._egress, self.name, self._url, request.as_bytes(), kind)
        if response.status_code != 200:
            raise AnchorError(f"{self.name}: status {response.status_code}")
        builder = VerifierBuilder.from_request(request)
        for root in self._roots:
            builder = builder.add_root_certificate(root)
        try:
            stamp = decode_timestamp_response(response.content)
            builder.build().verify_message(stamp, message)
        except (ValueError, VerificationError):
            why = "the answer is no timestamp of this checkpoint by the authority in the settings"
            raise AnchorError(f"{self.name}: {why}") from None
        return response.content


async def _posted(egress: Egress, name: str, url: str, body: bytes, kind: str) -> httpx2.Response:
    """Raises AnchorError."""
    try:
        async with egress.client() as client:
            return await client.post(url, content=body, headers={"content-type": kind})
    except Failure as failure:
        raise AnchorError(f"{name}: {failure.detail}") from None
    except httpx2.HTTPError as error:
        raise AnchorError(f"{name}: {type(error).__name__}") from None


def _number(text: str) -> int:
    digits = text.strip()
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 20 else 0


def _origin_of(checkpoint: SignedTree) -> str:
    return checkpoint.note.partition("\n")[0]
