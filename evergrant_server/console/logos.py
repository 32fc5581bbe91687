"""Who is on a page: name, and the operator's logo or a monogram. Logos come from this server alone."""

import re
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

_FILE = re.compile(r"(?:provider|(?:app|integration)-[a-z0-9-]{1,63})-[a-z0-9._-]{1,100}\.(?:svg|png)")
_MEDIA_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
_MAX_BYTES = 100_000
_TONES = 6  # of the style sheet


@dataclass(frozen=True)
class Party:
    """An app, an integration or a provider, as a page shows it. Without a logo it has a monogram."""

    name: str
    logo: str | None = None  # its path here

    @property
    def monogram(self) -> str:
        """The first letters of the first two words; of a host those of its name."""
        words = re.findall(r"[^\W_]+", self.name)
        return "".join(word[0] for word in words[:2]).upper() or "?"

    @property
    def tone(self) -> int:
        """Its colour: the same on every page."""
        return crc32(self.name.encode()) % _TONES


@dataclass(frozen=True)
class Parties:
    """Who asks, by which integration, and where the subject consents."""

    app: Party
    integration: Party
    provider: Party


class Logos:
    """The logos in a folder, read once: `provider-NAME`, `app-TENANT-NAME`, `integration-TENANT-NAME`, each
    .svg or .png."""

    def __init__(self, folder: Path | None = None) -> None:
        self._files: dict[str, bytes] = {}
        for path in sorted(folder.iterdir()) if folder is not None and folder.is_dir() else ():
            if _FILE.fullmatch(path.name) and path.is_file() and path.stat().st_size <= _MAX_BYTES:
                self._files[path.name] = path.read_bytes()

    def party(self, name: str, *known_as: str) -> Party:
        """The party of this name. `known_as` are the parts of its logo's file name."""
        begins = "-".join(known_as).lower().replace(":", "_")
        logo = next((file for ending in _MEDIA_TYPES if (file := begins + ending) in self._files), None)
        return Party(name, None if logo is None else f"/logos/{logo}")

    def file(self, name: str) -> tuple[bytes, str] | None:
        """The bytes and the media type of a logo, by its file's name."""
        content = self._files.get(name)
        return None if content is None else (content, _MEDIA_TYPES[name[-4:]])
