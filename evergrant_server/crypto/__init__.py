"""Sealing: the key ring, its purposes, and the bytes that a sealed value is made of.

Owns the key file, the wrapping of keys by keys and AES-256-GCM over one value in one
place. Doesn't own where sealed bytes are kept or which row needs which key: that is the
store. Anything unknown or altered is a failure that names the row; nothing is guessed.
"""

from evergrant_server.crypto.bundle import Signer
from evergrant_server.crypto.envelope import (
    AssociatedData,
    Hold,
    ReadySeal,
    Sealed,
    SealingKey,
    key_id_of,
    new_sealing_key,
    open_sealed,
    seal,
)
from evergrant_server.crypto.jose import Recipient, new_proof_key
from evergrant_server.crypto.keyring import ROOT_PURPOSES, KeyPurpose, KeyRing, Role

__all__ = [
    "ROOT_PURPOSES",
    "AssociatedData",
    "Hold",
    "KeyPurpose",
    "KeyRing",
    "ReadySeal",
    "Recipient",
    "Role",
    "Sealed",
    "SealingKey",
    "Signer",
    "key_id_of",
    "new_proof_key",
    "new_sealing_key",
    "open_sealed",
    "seal",
]
