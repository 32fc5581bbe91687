"""A provider's API for the gateway's measurements: `python -m bench.upstream PORT`.

`/x` answers with a kilobyte, `/events/N` with N server-sent events at once. A body is read and discarded.
"""

import asyncio
import sys

from bench.load import HOST

_BODY = b"x" * 1024
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = b"data: " + b"y" * 200 + b"\n\n"
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)


async def _talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            _, length, rest = head.lower().partition(b"content-length:")
            if length:
                await reader.readexactly(int(rest.partition(b"\r\n")[0]))
            path = head.split(b" ", 2)[1]
            if path.startswith(b"/events/"):
                writer.write(_STREAM)
                for _ in range(int(path.removeprefix(b"/events/"))):
                    writer.write(_CHUNK)
                    await writer.drain()
                writer.write(b"0\r\n\r\n")
            else:
                writer.write(_ANSWER)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main(port: int) -> None:
    server = await asyncio.start_server(_talk, HOST, port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
