"""Decodes a compressed response while it streams: a compressed credential couldn't be found.

Requests ask for no compression, so few responses have any. What is decoded at once is bounded.
"""

import zlib
from collections.abc import AsyncIterator

from evergrant_server.core.errors import ErrorCode, Failure

PIECE = 64 * 1024  # bytes


def decoder_of(encodings: list[bytes]) -> "zlib._Decompress | None":
    """The decoder of these `Content-Encoding` values; None: not compressed.

    Raises Failure REPLY_UNREADABLE.
    """
    match b",".join(encodings).strip().lower():
        case b"" | b"identity":
            return None
        case b"gzip" | b"x-gzip":
            return zlib.decompressobj(zlib.MAX_WBITS | 16)
        case b"deflate":
            return zlib.decompressobj()
    raise Failure(ErrorCode.REPLY_UNREADABLE, "The answer has a content encoding that can't be read.")


async def decoded(chunks: AsyncIterator[bytes], decoder: "zlib._Decompress | None") -> AsyncIterator[bytes]:
    """The content, in pieces of at most PIECE bytes where it was compressed."""
    async for chunk in chunks:
        if decoder is None:
            yield chunk
            continue
        try:
            while chunk:
                piece = decoder.decompress(chunk, PIECE)
                chunk = decoder.unconsumed_tail
                if piece:
                    yield piece
        except zlib.error:
            raise Failure(ErrorCode.REPLY_UNREADABLE, "The answer's compression is broken.") from None
