"""Encoded files as a source gives them: their bytes, which a kind of data decodes."""
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class File:
    """A file's content. A raw example {"file": File, ...} passes through its kind's `load`; a tuple of Files is a
    folder of frames."""
    where: str       # its name in messages
    content: bytes

    @property
    def ending(self) -> str:
        """".png", in small letters."""
        return PurePosixPath(self.where).suffix.lower()
