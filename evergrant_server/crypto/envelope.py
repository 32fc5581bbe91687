"""One sealed value: `EVS`, format version, key id, nonce, then AES-256-GCM ciphertext and tag."""

import secrets
from dataclasses import dataclass
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import SecretLeak


@dataclass(frozen=True, slots=True)
class AssociatedData:
    """Tenant, table, row and column of one sealed value, and the grant's generation (0: none)."""

    tenant: str
    table: str
    row: str
    column: str
    generation: int = 0

    def __str__(self) -> str:
        return f"{self.table} {self.row}, column {self.column}"

    def authenticated_data(self, key_id: str, version: int) -> bytes:
        """The additional authenticated data of AES-GCM (NIST SP 800-38D) for this value."""
        place = (self.tenant, self.table, self.row, self.column, self.generation)
        return encode_parts("evergrant-seal", version, *place, key_id)


def encode_parts(*parts: str | int) -> bytes:
    """An unambiguous encoding: each part as a type byte, its length in 4 bytes, then the part.

    Two different sequences of parts never have the same encoding.
    """
    encoded = [len(parts).to_bytes(4)]
    for part in parts:
        kind, raw = (b"s", part.encode()) if isinstance(part, str) else (b"i", str(part).encode())
        encoded += (kind, len(raw).to_bytes(4), raw)
    return b"".join(encoded)


KEY_BYTES = 32
VERSION = 1
_MAGIC = b"EVS"
_NONCE_BYTES = 12  # NIST SP 800-38D section 8.2.2: a random 96-bit nonce, at most 2^32 values a key
_TAG_BYTES = 16
_HEADER_BYTES = len(_MAGIC) + 2  # magic, version, length of the key id


class Sealed(bytes):
    """Sealed bytes. They are no secret, and still no log has a use for them."""

    def __repr__(self) -> str:
        return f"<sealed, {len(self)} bytes>"

    __str__ = __repr__


class SealingKey:
    """256 bits with a name. Doesn't print and can't be pickled."""

    __slots__ = ("_raw", "id")

    def __init__(self, key_id: str, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise ValueError("a sealing key has 32 bytes")
        if not 0 < len(key_id.encode()) < 256:
            raise ValueError("a key id has 1 to 255 bytes")
        self.id = key_id
        self._raw = raw

    def reveal(self) -> bytes:
        """The key itself, for a cipher or for wrapping it under another key."""
        return self._raw

    def __repr__(self) -> str:
        return f"SealingKey({self.id!r}, ***)"

    def __reduce__(self) -> NoReturn:
        raise SecretLeak("a key is never pickled or copied into a message")


def new_sealing_key(prefix: str) -> SealingKey:
    """A fresh random key whose id is `<prefix>_` and 96 random bits."""
    return SealingKey(f"{prefix}_{secrets.token_hex(12)}", secrets.token_bytes(KEY_BYTES))


class Hold:
    """Whether what was unwrapped with keys that a process holds for a time may still be used."""

    __slots__ = ("over",)

    def __init__(self) -> None:
        self.over = False


_FOR_GOOD = Hold()


def seal(key: SealingKey, place: AssociatedData, value: bytes) -> Sealed:
    """Seal `value` for `place`: it opens with this key, in this place, and nowhere else."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    body = AESGCM(key.reveal()).encrypt(nonce, value, place.authenticated_data(key.id, VERSION))
    return Sealed(seal_head(key.id) + nonce + body)


def seal_head(key_id: str) -> bytes:
    """What every value begins with that this key has sealed, and no other key."""
    name = key_id.encode()
    return _MAGIC + bytes((VERSION, len(name))) + name


def key_id_of(sealed: bytes, place: AssociatedData) -> str:
    """The id of the key that sealed this. Raises Failure SEAL_BROKEN when there is none to read."""
    if len(sealed) < _HEADER_BYTES or sealed[:3] != _MAGIC:
        raise seal_broken(place, "is not a sealed value")
    if sealed[3] != VERSION:
        raise seal_broken(place, f"has the unknown seal format {sealed[3]}")
    end = _HEADER_BYTES + sealed[4]
    if sealed[4] == 0 or len(sealed) < end + _NONCE_BYTES + _TAG_BYTES:
        raise seal_broken(place, "is cut short")
    try:
        return sealed[_HEADER_BYTES:end].decode()
    except UnicodeDecodeError:
        raise seal_broken(place, "names no readable key") from None


def open_sealed(key: SealingKey, place: AssociatedData, sealed: bytes) -> bytes:
    """Open a value that was sealed for `place`.

    Raises Failure SEAL_BROKEN when the bytes were altered, belong to another place or
    generation, or were sealed with another key.
    """
    return ReadySeal(key, place, sealed).open()


class ReadySeal:
    """A sealed value beside its key in the form that the cipher takes: each opening costs one decryption.

    It has its key for as long as it is kept: no longer than the rows that it was made from are cached.
    """

    __slots__ = ("_body", "_cipher", "_nonce", "_place", "_placed", "hold")

    def __init__(self, key: SealingKey, place: AssociatedData, sealed: bytes, hold: Hold = _FOR_GOOD) -> None:
        """Raises Failure SEAL_BROKEN for a value of another key."""
        self.hold = hold
        if key_id_of(sealed, place) != key.id:
            raise seal_broken(place, "was sealed with another key")
        start = _HEADER_BYTES + sealed[4]
        self._nonce, self._body = sealed[start : start + _NONCE_BYTES], sealed[start + _NONCE_BYTES :]
        self._cipher = AESGCM(key.reveal())
        self._place, self._placed = place, place.authenticated_data(key.id, VERSION)

    def open(self) -> bytes:
        """As `open_sealed`. Raises Failure KEY_UNAVAILABLE once its hold is over."""
        if self.hold.over:
            raise key_unavailable(self._place, "its root key isn't held any more")
        try:
            return self._cipher.decrypt(self._nonce, self._body, self._placed)
        except InvalidTag:
            why = "was altered, or belongs to another row, column or generation"
            raise seal_broken(self._place, why) from None

    def __repr__(self) -> str:
        return f"<ready seal of {self._place}>"

    def __reduce__(self) -> NoReturn:
        raise SecretLeak("a key is never pickled or copied into a message")


def seal_broken(place: AssociatedData, why: str) -> Failure:
    """The failure that says which value can't be trusted."""
    return _failure(ErrorCode.SEAL_BROKEN, place, f"the value {why}")


def key_unavailable(place: AssociatedData, why: str) -> Failure:
    """The failure that says for which value a key is missing."""
    return _failure(ErrorCode.KEY_UNAVAILABLE, place, why)


def _failure(code: ErrorCode, place: AssociatedData, why: str) -> Failure:
    where = {"table": place.table, "row": place.row, "column": place.column}
    return Failure(code, f"{place}: {why}.", retry_after=None, **where)
