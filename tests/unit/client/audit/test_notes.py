"""Notes, checkpoints and proofs: the examples of C2SP's specifications, and what isn't of the format."""

import base64
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from evergrant.audit.notes import (
    COSIGNATURE,
    PLAIN,
    Checkpoint,
    LogProof,
    Note,
    NoteError,
    Signature,
    VerifierKey,
    cosign,
    key_id,
)
from evergrant.audit.tree import ProofError, leaf_hash, node_hash

# c2sp.org/signed-note, "Example"
VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
NOTE = (
    "This is an example message.\n\n\u2014 example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTg"
    "K7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
# c2sp.org/tlog-checkpoint
CHECKPOINT = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "\u2014 example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzG"
    "ku9nTo+zyWE+xeMcTOAYQ8=\n"
)

LOG, WITNESS = "evergrant.example/audit", "witness.example/w1"
LOG_KEY, WITNESS_KEY = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
LEAVES = [leaf_hash(bytes([number])) for number in range(2)]


def vkey(name: str, key: Ed25519PrivateKey, type: int = PLAIN) -> VerifierKey:
    return VerifierKey(name, type, key.public_key().public_bytes_raw())


def signed(text: str, name: str = LOG, key: Ed25519PrivateKey = LOG_KEY) -> str:
    id = key_id(name, PLAIN, key.public_key().public_bytes_raw())
    return str(Note(text, (Signature(name, id, key.sign(text.encode())),)))


def proof() -> LogProof:
    """Of the second of two records."""
    root = base64.b64encode(node_hash(*LEAVES)).decode()
    return LogProof(1, (LEAVES[0],), Checkpoint.parse(signed(f"{LOG}\n2\n{root}\n")))


def test_the_specifications_note_and_key():
    key = VerifierKey.parse(VKEY)
    assert str(key) == VKEY
    note = Note.parse(NOTE)
    assert str(note) == NOTE
    assert note.signed_by([key]) == {"example.com/foo": None}
    with pytest.raises(NoteError, match="is wrong"):
        replace(note, text="This is another message.\n").signed_by([key])


def test_the_specifications_checkpoint():
    checkpoint = Checkpoint.parse(CHECKPOINT)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    with pytest.raises(NoteError, match="not of"):
        checkpoint.require_signed(vkey(LOG, LOG_KEY))


def test_a_proof_survives_its_text_and_names_its_record():
    text = str(replace(proof(), extra=b"which shard"))
    parsed = LogProof.parse(text)
    assert (str(parsed), parsed.extra) == (text, b"which shard")
    parsed.require_has(LEAVES[1], vkey(LOG, LOG_KEY))
    with pytest.raises(ProofError, match="another record at 1"):
        parsed.require_has(LEAVES[0], vkey(LOG, LOG_KEY))
    with pytest.raises(NoteError, match="not of another"):
        parsed.require_has(LEAVES[1], vkey("another.example/audit", LOG_KEY))
    with pytest.raises(NoteError, match="hasn't signed"):
        parsed.require_has(LEAVES[1], vkey(LOG, WITNESS_KEY))


def test_a_witness_says_when_it_saw_the_checkpoint():
    checkpoint = proof().checkpoint
    signature = cosign(checkpoint, WITNESS, WITNESS_KEY, 1_800_000_000)
    note = replace(checkpoint.note, signatures=(*checkpoint.note.signatures, signature))
    witness = vkey(WITNESS, WITNESS_KEY, COSIGNATURE)
    keys = [vkey(LOG, LOG_KEY), witness]
    assert Note.parse(str(note)).signed_by(keys) == {LOG: None, WITNESS: 1_800_000_000}
    later = replace(signature, value=(1_900_000_000).to_bytes(8) + signature.value[8:])
    with pytest.raises(NoteError, match="is wrong"):
        replace(note, signatures=(later,)).signed_by(keys)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a note is"),
        (NOTE[:-1], "a note is"),
        (NOTE.replace("\n\n", "\n"), "a note is"),
        (NOTE.replace("message", "mess\tage"), "control"),
        (NOTE.replace("\u2014", "-"), "a line of signature"),
        (NOTE.replace("example.com/foo ", "example.com/+foo "), "a line of signature"),
        (NOTE.replace("Uw2Q", "Uw_Q"), "no base64"),
        (NOTE.replace("aQM=", "aQN="), "this text alone"),
        ("a\n\n" + "\u2014 a AAAAAAAA\n" * 101, "at most 100"),
    ],
)
def test_what_is_no_note(text: str, why: str):
    with pytest.raises(NoteError, match=why):
        Note.parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"{LOG}\n2\n", "an origin, a size and a root"),
        (f"{LOG}\n02\nAAAA\n", "the size is no"),
        (f"{LOG}\n-2\nAAAA\n", "the size is no"),
        (f"{LOG}\n{10**20}\nAAAA\n", "the size is no"),
        (f"{LOG}\n2\nAAAA\n", "the root has 3 bytes"),
        (f"{LOG}\n2\n\n{'A' * 43}=\n", "an origin, a size and a root"),
    ],
)
def test_what_is_no_checkpoint(text: str, why: str):
    with pytest.raises(NoteError, match=why):
        Checkpoint.parse(signed(text))


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("@v1", "@v2", "begins with"),
        ("index 1", "place 1", "names an index"),
        ("index 1", "index 01", "the index is no"),
        ("index 1\n", "index 1\nAAAA\n", "line 1 of the proof has 3 bytes"),
        ("index 1\n", "index 1\n" + f"{'A' * 43}=\n" * 63, "at most 63"),
    ],
)
def test_what_is_no_proof(before: str, after: str, why: str):
    with pytest.raises(NoteError, match=why):
        LogProof.parse(str(proof()).replace(before, after))


@pytest.mark.parametrize(
    "text",
    ["", "a+b", VKEY[:-4], VKEY.replace("530d903a", "530d903b"), VKEY.replace("AekyeR", "BekyeR")],
)
def test_what_is_no_verifier_key(text: str):
    with pytest.raises(NoteError):
        VerifierKey.parse(text)
