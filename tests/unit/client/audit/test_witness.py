"""The witness signs what extends what it has signed, also when requests race, and after a restart."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from evergrant.audit.notes import Checkpoint, Note, VerifierKey, hash_lines
from evergrant.audit.tree import EMPTY_ROOT
from evergrant.audit.witness import PATH, Answer, Witness, last_signed, serving

from evergrant_server.audit import merkle_tree
from evergrant_server.audit.merkle_tree import Frontier, TileSlice
from tests.fakes.patience import PATIENCE_S
from tests.unit.client.audit.test_notes import LOG, LOG_KEY, WITNESS, WITNESS_KEY, signed, vkey

LEAVES = [merkle_tree.leaf_hash(bytes([number])) for number in range(40)]
REWRITTEN = [bytes(32), *LEAVES[1:]]
AT = 1_800_000_000


OPEN: list[Witness] = []


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Of the witness's memory; each that has opened it is closed."""
    yield tmp_path / "witness.db"
    while OPEN:
        OPEN.pop().close()


def witness_of(file: Path, *logs: VerifierKey) -> Witness:
    OPEN.append(Witness(WITNESS, WITNESS_KEY, logs or [vkey(LOG, LOG_KEY)], file, now=lambda: AT))
    return OPEN[-1]


def checkpoint(size: int, leaves: list[bytes] = LEAVES, key: Ed25519PrivateKey = LOG_KEY) -> str:
    root = Frontier().appended(leaves[:size]).root
    return signed(f"{LOG}\n{size}\n{hash_lines([root])}", key=key)


def request(older: int, newer: int, leaves: list[bytes] = LEAVES) -> str:
    def read(part: TileSlice) -> bytes:
        assert part.level == 0
        return b"".join(leaves[part.first : part.first + part.count])

    path = merkle_tree.roots(merkle_tree.consistency_path(older, newer), read)
    return f"old {older}\n{hash_lines(path)}\n{checkpoint(newer, leaves)}"


def cosigned(answer: Answer, size: int) -> bool:
    """Whether the answer is this witness's cosignature of the log's tree of this size."""
    note = Note.parse(checkpoint(size) + answer.body)
    witness = VerifierKey(WITNESS, 4, WITNESS_KEY.public_key().public_bytes_raw())
    return note.signed_by([witness]) == {WITNESS: AT}


def test_it_signs_each_tree_that_extends_the_last(file: Path):
    witness = witness_of(file)
    for older, newer in ((0, 0), (0, 1), (1, 1), (1, 7), (7, 8), (8, 40)):
        answer = witness.add_checkpoint(request(older, newer))
        assert answer.status == HTTPStatus.OK, answer
        assert cosigned(answer, newer)
    assert last_signed(file) == [(LOG, 40, AT)]


def test_what_it_has_signed_outlives_it(file: Path):
    first = witness_of(file)
    assert first.add_checkpoint(request(0, 8)).status == HTTPStatus.OK
    first.close()
    again = witness_of(file)
    assert again.add_checkpoint(request(0, 9)) == Answer(HTTPStatus.CONFLICT, "8\n", "text/x.tlog.size")
    assert again.add_checkpoint(request(8, 9, REWRITTEN)).status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert again.add_checkpoint(request(8, 9)).status == HTTPStatus.OK


def test_two_stories_of_one_size(file: Path):
    witness = witness_of(file)
    assert witness.add_checkpoint(request(0, 5)).status == HTTPStatus.OK
    answer = witness.add_checkpoint(f"old 5\n\n{checkpoint(5, REWRITTEN)}")
    assert answer.status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert "different roots" in answer.body


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", HTTPStatus.BAD_REQUEST),
        (f"old\n\n{checkpoint(1)}", HTTPStatus.BAD_REQUEST),
        (f"old 01\n\n{checkpoint(1)}", HTTPStatus.BAD_REQUEST),
        (f"old -1\n\n{checkpoint(1)}", HTTPStatus.BAD_REQUEST),
        (f"old 0\nAAAA\n\n{checkpoint(1)}", HTTPStatus.BAD_REQUEST),
        (f"old 0\n{hash_lines([EMPTY_ROOT] * 64)}\n{checkpoint(1)}", HTTPStatus.BAD_REQUEST),
        (f"old 2\n\n{checkpoint(1)}", HTTPStatus.BAD_REQUEST),
        ("old 0\n\n" + checkpoint(1).replace(LOG, "another.example"), HTTPStatus.NOT_FOUND),
        (f"old 0\n\n{checkpoint(1, key=WITNESS_KEY)}", HTTPStatus.FORBIDDEN),
        ("old 0\n\n" + checkpoint(1).replace("\n1\n", "\n2\n"), HTTPStatus.FORBIDDEN),
        (f"old 0\n{hash_lines([EMPTY_ROOT])}\n{checkpoint(1)}", HTTPStatus.UNPROCESSABLE_ENTITY),
        (
            "old 0\n\n" + signed(f"{LOG}\n0\n{hash_lines([bytes(32)])}"),
            HTTPStatus.UNPROCESSABLE_ENTITY,
        ),
    ],
)
def test_what_it_refuses_it_doesnt_keep(file: Path, body: str, status: HTTPStatus):
    witness = witness_of(file)
    answer = witness.add_checkpoint(body)
    assert answer.status == status
    assert answer.body.strip()
    assert last_signed(file) == []


def test_of_requests_that_race_one_wins(file: Path):
    witness = witness_of(file)
    assert witness.add_checkpoint(request(0, 8)).status == HTTPStatus.OK
    bodies = [request(8, newer) for newer in range(9, 25)]
    with ThreadPoolExecutor(8) as pool:
        statuses = [answer.status for answer in pool.map(witness.add_checkpoint, bodies)]
    assert sorted(statuses) == [HTTPStatus.OK] + [HTTPStatus.CONFLICT] * 15
    ((_, size, _),) = last_signed(file)
    assert statuses[size - 9] == HTTPStatus.OK


def test_over_http(file: Path):
    witness = witness_of(file)
    with serving(witness, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with httpx2.Client(
                base_url=f"http://127.0.0.1:{server.server_port}", trust_env=False, timeout=PATIENCE_S
            ) as client:
                assert VerifierKey.parse(client.get("/").text) == witness.key
                reply = client.post(PATH, content=request(0, 3))
                assert (reply.status_code, reply.headers["content-type"]) == (
                    200,
                    "text/plain; charset=utf-8",
                )
                assert cosigned(Answer(HTTPStatus.OK, reply.text), 3)
                conflict = client.post(PATH, content=request(0, 4))
                assert (conflict.status_code, conflict.text) == (409, "3\n")
                assert conflict.headers["content-type"] == "text/x.tlog.size"
                assert client.post("/elsewhere", content="").status_code == 404
                assert client.post(PATH, content=b"\xff").status_code == 400
                assert client.post(PATH, content=b"x" * 70_000).status_code == 413
        finally:
            server.shutdown()
            thread.join()


def test_a_checkpoint_is_read_again_as_it_was_signed(file: Path):
    text = checkpoint(3)
    assert str(Checkpoint.parse(text).note) == text
