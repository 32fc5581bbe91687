"""PKCS#11: for each purpose an AES key of a token, which can't be extracted. The URL is that of RFC 7512.

    pkcs11:token=evergrant;object=evergrant-{purpose}?module-path=/usr/lib/hsm.so&pin-source=file:/run/secrets/pin

With `{purpose}` in the token's label and in `pin-source`, a role has the PINs of its purposes alone.

A wrong PIN is entered once. Tokens count such tries and lock: so no process enters a PIN while the token says
that a wrong one was entered since the last login, unless this process did and its file has another PIN now.
"""

import hashlib
import secrets
import threading
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pkcs11
from pkcs11 import exceptions as errors

from evergrant_server.crypto.key_services.blocking import BlockingKeyService
from evergrant_server.crypto.key_services.port import (
    PURPOSE,
    Context,
    FailureReason,
    KeyDescription,
    KeyServiceFailure,
    ServicePurpose,
    ServiceUrl,
)

_NONCE_BYTES = 12
_TAG_BYTES = 16
_ATTRIBUTES = {"token", "serial", "object"}
_LAST_TRY = pkcs11.TokenFlag.USER_PIN_FINAL_TRY | pkcs11.TokenFlag.USER_PIN_LOCKED
_PIN_REFUSED = (
    *(errors.PinIncorrect, errors.PinInvalid, errors.PinLenRange, errors.PinTooWeak),
    *(errors.PinLocked, errors.PinExpired, errors.UserPinNotInitialized),
)
_REFUSED = (*_PIN_REFUSED, errors.FunctionRejected)
_NO_KEY = (
    *(errors.NoSuchKey, errors.MultipleObjectsReturned, errors.KeyTypeInconsistent, errors.KeySizeRange),
    *(errors.MechanismInvalid, errors.MechanismParamInvalid, errors.FunctionNotSupported),
    *(errors.MultipleTokensReturned, errors.AttributeTypeInvalid),
)
_NOT_PERMITTED = "0x68"  # CKR_KEY_FUNCTION_NOT_PERMITTED, for which the library has no class
_ALTERED = (
    errors.EncryptedDataInvalid,
    errors.EncryptedDataLenRange,
    errors.DataInvalid,
    errors.DataLenRange,
)


class _Module:
    """A module is one for the process: a lock for its callers, and the services that have logged in."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users: set[Pkcs11Service] = set()


_modules: defaultdict[str, _Module] = defaultdict(_Module)


def open_service(url: ServiceUrl) -> "Pkcs11Service":
    return Pkcs11Service(url)


class Pkcs11Service(BlockingKeyService):
    """One call at a time, in sessions that stay logged in. After an error the next call logs in anew."""

    def __init__(self, url: ServiceUrl) -> None:
        super().__init__(url)
        options = url.checked("module-path", "pin-source")
        if options.keys() != {"module-path", "pin-source"}:
            raise ValueError("it needs ?module-path=/…/lib….so&pin-source=file:/… (RFC 7512)")
        pairs = [part.partition("=") for part in url.key.split(";")]
        self._attributes = {name: unquote(value) for name, _, value in pairs}
        if not {"token", "object"} <= self._attributes.keys() <= _ATTRIBUTES:
            why = "it must be pkcs11:token=LABEL;object=evergrant-{purpose}, perhaps with serial=…"
            raise ValueError(why)
        self._module = options["module-path"]
        self._pin_file = unquote(options["pin-source"].removeprefix("file:"))
        self._lock, self._users = _modules[self._module].lock, _modules[self._module].users
        self._tokens: dict[str, _Token] = {}

    def wrap_now(self, purpose: ServicePurpose, key: bytes, context: Context) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        with self._lock:
            token_key = self._key(purpose)
            if token_key[pkcs11.Attribute.EXTRACTABLE]:
                why = "can be extracted from its token: make one with CKA_EXTRACTABLE false"
                raise KeyServiceFailure(FailureReason.GONE, self.key_name(purpose), why)
            return nonce + self._crypted(token_key.encrypt, key, nonce, purpose, context)

    def unwrap_now(self, purpose: ServicePurpose, wrapped: bytes, context: Context) -> bytes:
        nonce, encrypted = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        if len(encrypted) <= _TAG_BYTES:
            why = "didn't wrap this value, or it was cut short"
            raise KeyServiceFailure(FailureReason.BROKEN, self.key_name(purpose), why)
        with self._lock:
            key = self._key(purpose)
            try:
                return self._crypted(key.decrypt, encrypted, nonce, purpose, context)
            except errors.PKCS11Error as error:
                if isinstance(error, (*_NO_KEY, *_ALTERED)) or not self._works(purpose):
                    raise
                # the key works, so it is the value: some modules say no more than CKR_GENERAL_ERROR
                why = f"didn't wrap this value, or it was altered: {type(error).__name__}"
                raise KeyServiceFailure(FailureReason.BROKEN, self.key_name(purpose), why) from None

    def describe_now(self, purpose: ServicePurpose) -> KeyDescription:
        with self._lock:
            key = self._key(purpose)
            token = self._token(purpose).session.token
            is_usable = bool(key[pkcs11.Attribute.ENCRYPT] and key[pkcs11.Attribute.DECRYPT])
            in_hardware = bool(token.slot.flags & pkcs11.SlotFlag.HW_SLOT)
        principal = f"the user of token {token.label}"
        return KeyDescription(self.key_name(purpose), None, is_usable, in_hardware, principal)

    def close_now(self) -> None:
        """The last to close finalizes the module, unless a call hangs there: a fork initializes its own."""
        if self not in self._users or not self._lock.acquire(blocking=False):
            return
        try:
            for token in self._tokens.values():
                token.log_out()
            self._users.discard(self)
            if not self._users:
                with suppress(errors.PKCS11Error):
                    pkcs11.lib(self._module).finalize()
        finally:
            self._lock.release()

    def reason_of(self, error: Exception, opens: bool) -> FailureReason | None:
        if isinstance(error, _REFUSED):
            return FailureReason.DENIED
        if isinstance(error, _NO_KEY) or _NOT_PERMITTED in str(error):
            return FailureReason.GONE
        if opens and isinstance(error, _ALTERED):
            return FailureReason.BROKEN
        # RuntimeError: the module can't be loaded
        return FailureReason.AWAY if isinstance(error, errors.PKCS11Error | OSError | RuntimeError) else None

    def words_of(self, error: Exception) -> str:
        return f"{type(error).__name__} {error}"

    def _crypted(
        self, method: Any, value: bytes, nonce: bytes, purpose: ServicePurpose, context: Context
    ) -> bytes:
        parameters = pkcs11.GCMParams(nonce, context.encoded(purpose), _TAG_BYTES * 8)
        try:
            return method(value, mechanism=pkcs11.Mechanism.AES_GCM, mechanism_param=parameters)
        except errors.PKCS11Error:
            self._token(purpose).log_out()
            raise

    def _works(self, purpose: ServicePurpose) -> bool:
        """Whether the key opens what it wraps just now."""
        nonce, value, context = secrets.token_bytes(_NONCE_BYTES), bytes(_TAG_BYTES), Context("trial")
        try:
            wrapped = self._crypted(self._key(purpose).encrypt, value, nonce, purpose, context)
            return self._crypted(self._key(purpose).decrypt, wrapped, nonce, purpose, context) == value
        except (errors.PKCS11Error, KeyServiceFailure):
            return False

    def _key(self, purpose: ServicePurpose) -> Any:
        token = self._token(purpose)
        self._users.add(self)
        session = token.session or token.log_in(self.key_name(purpose))
        label = self._attributes["object"].replace(PURPOSE, purpose.value)
        try:
            return session.get_key(pkcs11.ObjectClass.SECRET_KEY, pkcs11.KeyType.AES, label)
        except errors.PKCS11Error:
            token.log_out()
            raise

    def _token(self, purpose: ServicePurpose) -> "_Token":
        label = self._attributes["token"].replace(PURPOSE, purpose.value)
        if label not in self._tokens:
            pin_file = Path(self._pin_file.replace(PURPOSE, purpose.value))
            self._tokens[label] = _Token(self._module, label, self._attributes.get("serial"), pin_file)
        return self._tokens[label]


class _Token:
    """A token and its PIN."""

    def __init__(self, module: str, label: str, serial: str | None, pin_file: Path) -> None:
        self._module, self._label, self._serial, self._pin_file = module, label, serial, pin_file
        self._salt = secrets.token_bytes(16)
        self._refused_pin: bytes | None = None  # its digest
        self.session: Any = None

    def log_in(self, key: str) -> Any:
        """Raises what the module raises, or KeyServiceFailure DENIED that names `key`."""
        token = self._present()
        try:
            pin = self._pin_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            why = f"isn't to be had now: the PIN's file {self._pin_file} can't be read"
            raise KeyServiceFailure(FailureReason.AWAY, key, why) from None
        digest = hashlib.sha256(self._salt + pin.encode()).digest()
        if why := self._objection(token, digest):
            raise KeyServiceFailure(FailureReason.DENIED, key, why)
        try:
            self.session = token.open(user_pin=pin)
        except errors.UserAlreadyLoggedIn:  # by another key service of this process
            self.session = token.open()
        except _PIN_REFUSED:
            self._refused_pin = digest
            raise
        return self.session

    def log_out(self) -> None:
        session, self.session = self.session, None
        with suppress(errors.PKCS11Error):
            if session is not None:
                session.close()

    def _present(self) -> Any:
        """The token as its slot has it now."""
        library = pkcs11.lib(self._module)
        names = {"token_label": self._label, "token_serial": self._serial and self._serial.encode()}
        try:
            return library.get_token(**names)
        except errors.PKCS11Error:
            library.reinitialize()  # some modules see a token that came back only then
            return library.get_token(**names)

    def _objection(self, token: Any, digest: bytes) -> str | None:
        """Why the PIN isn't entered: it may be one that was wrong before."""
        if digest == self._refused_pin:
            return f"is refused to this process: the PIN in {self._pin_file} was wrong; it isn't tried again"
        if token.flags & _LAST_TRY:
            return "isn't asked for: the token's user PIN is locked, or would be after another wrong one"
        if token.flags & pkcs11.TokenFlag.USER_PIN_COUNT_LOW and self._refused_pin is None:
            return (
                "isn't asked for: since the last login a wrong PIN was entered, and this process won't "
                f"add another. Check {self._pin_file}, then log in with that PIN once: "
                f"pkcs11-tool --module {self._module} --token-label {self._label} --login --list-objects"
            )
        return None
