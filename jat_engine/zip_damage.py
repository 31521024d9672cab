"""Errors of damaged zip files, such as npz files and those of `torch.save`."""

from __future__ import annotations

import lzma
import zipfile
import zlib

ZIP_DAMAGE: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    OverflowError,  # of a place beyond all files
    MemoryError,  # of a size beyond all memory
    NotImplementedError,  # of a flag or a version that is not known
    RuntimeError,  # of a flag that says that it is encrypted
    OSError,  # of a place before the file, and of bzip2
)
"""Classes of the errors that `zipfile`, its decompressors and readers of npy headers raise for damaged bytes."""
