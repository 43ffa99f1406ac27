"""What a TensorFlow Datasets builder has written, read back whole and checked.

Dimension key: none.
"""

import io
import json
import pathlib
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any, cast

import tensorflow_datasets as tfds

from core_jax.data.fetch import file_sha256
from core_jax.errors import DataError


def read_built(builder: tfds.core.DatasetBuilder, split: str) -> list[Mapping[str, Any]]:
    """Builds a split if need be, without a word, and reads its records in one batch.

    Args:
      builder: writes ArrayRecord.
      split: the split to read.

    Returns:
      All examples, in order; text is bytes.

    Raises:
      DataError: the files are not those that were written.
    """
    with redirect_stdout(io.StringIO()):
        tfds.disable_progress_bar()
        try:
            builder.download_and_prepare()
        finally:
            tfds.enable_progress_bar()
    _check_records(pathlib.Path(builder.data_path))
    records = cast(Any, builder).as_data_source(split)
    return list(records.__getitems__(range(len(records))))


def _check_records(folder: pathlib.Path) -> None:
    """Compares the built files with their checksums, which are written the first time.

    ArrayRecord's own checksums do not find a small file that was cut off.
    """
    expected_path = folder / "sha256.json"
    seen = {file.name: file_sha256(file) for file in sorted(folder.glob("*array_record*"))}
    if not expected_path.exists():
        expected_path.write_text(json.dumps(seen), encoding="utf-8")
    expected = json.loads(expected_path.read_text(encoding="utf-8"))
    for name in {**expected, **seen}:
        if name not in seen:
            raise DataError(
                f"the built file '{folder / name}' is lost; put it back from a copy, or delete "
                f"'{folder}', it is then built again"
            )
        if expected.get(name) != seen[name]:
            raise DataError(
                f"the built file '{folder / name}' has SHA-256 {seen[name]}, not "
                f"{expected.get(name)}; delete '{folder}', it is then built again"
            )
