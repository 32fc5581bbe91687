"""Associated data of sealed values: tenant, table, row, column and generation."""

from dataclasses import dataclass


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

    @property
    def error_context(self) -> dict[str, str]:
        """The members of a failure about this value."""
        return {"table": self.table, "row": self.row, "column": self.column}


def encode_parts(*parts: str | int) -> bytes:
    """An unambiguous encoding: each part as a type byte, its length in 4 bytes, then the part.

    Two different sequences of parts never have the same encoding.
    """
    encoded = bytearray(len(parts).to_bytes(4))
    for part in parts:
        kind, raw = (b"i", str(part).encode()) if isinstance(part, int) else (b"s", part.encode())
        encoded += kind + len(raw).to_bytes(4) + raw
    return bytes(encoded)


def encode_associated_data(place: AssociatedData, key_id: str, version: int) -> bytes:
    """The additional authenticated data of AES-GCM (NIST SP 800-38D) for a value in `place`."""
    return encode_parts(
        "evergrant-seal",
        version,
        place.tenant,
        place.table,
        place.row,
        place.column,
        place.generation,
        key_id,
    )
