"""GSM8K, MATH, MATH500 and SVAMP through a TensorFlow Datasets builder; no TensorFlow needed.

GSM8K (Cobbe et al., 2021, arXiv:2110.14168) and MATH500 (Lightman et al., 2023, arXiv:2305.20050)
are fetched from their authors' repositories where those can be reached. MATH (Hendrycks et al.,
2021, arXiv:2103.03874) and SVAMP (Patel et al., 2021, arXiv:2103.07191) have no address that is
sure to last: give the file. What is built lies as ArrayRecord in the data cache.

Dimension key: none.
"""

import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl
import tensorflow_datasets as tfds

from core_jax.data.fetch import Address, cache_folder, fetch_first, file_sha256
from core_jax.data.records import read_built
from core_jax.errors import DataError, nearest_name
from reasoning_jax.answers.extraction import last_boxed
from reasoning_jax.data.problems import SPLITS, Problem, check_unique

_LOGGER = logging.getLogger(__name__)

_GSM8K = (
    "https://raw.githubusercontent.com/openai/grade-school-math/"
    "3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data"
)
ADDRESSES: dict[tuple[str, str], Address] = {
    ("gsm8k", split): Address(
        url=f"{_GSM8K}/{split}.jsonl", filename=f"gsm8k_{split}.jsonl", sha256=sha256
    )
    for split, sha256 in (
        ("train", "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"),
        ("test", "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),
    )
}
"""Where a split can be fetched."""
# The repository keeps this file in Git LFS; its pointer there states this SHA-256.
ADDRESSES["math500", "test"] = Address(
    url=(
        "https://github.com/openai/prm800k/raw/00811d6de065642a6967b9017d4cee59550c0ef4/"
        "prm800k/math_splits/test.jsonl"
    ),
    filename="math500_test.jsonl",
    sha256="35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
)

_COLUMNS = {
    "gsm8k": "question, answer (worked, its last line '#### N')",
    "math": "problem, solution (with \\boxed), and perhaps level, type",
    "math500": "problem, solution, answer, and perhaps subject, level, unique_id",
    "svamp": "Body, Question, Answer, ID",
}

Row = Mapping[str, Any]


class ProblemSet(tfds.core.GeneratorBasedBuilder):
    """One split of a problem set; the configuration is called "gsm8k-train" and so on."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None
    BUILDER_CONFIGS = [  # noqa: RUF012 (the base class reads this list)
        tfds.core.BuilderConfig(name=f"{name}-{split}", description=f"{split} of {name}")
        for name, splits in SPLITS.items()
        for split in splits
    ]

    def __init__(self, *, source: str, **builder_arguments: Any):
        """Makes a builder.

        Args:
          source: the split's file, or MATH's folder.
          **builder_arguments: those of every TensorFlow Datasets builder: config, data_dir,
            file_format.
        """
        self._source = source
        super().__init__(**builder_arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        """One example is one problem."""
        text = tfds.features.Text
        names = ("problem_id", "question", "answer", "solution", "metadata")
        return tfds.core.DatasetInfo(
            builder=self,
            description="Problems with one gold answer.",
            features=tfds.features.FeaturesDict({name: text() for name in names}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        """The one split; the manager is unused, downloads are `fetch`'s."""
        del dl_manager
        config = self.builder_config
        assert config is not None  # the base class insists on one of BUILDER_CONFIGS
        name, split = config.name.split("-")
        return {split: self._generate_examples(name, split)}

    def _generate_examples(self, name: str, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        """Yields (position, example)."""
        for index, problem in enumerate(read_problems(name, split, self._source)):
            yield (
                index,
                {
                    "problem_id": problem.problem_id,
                    "question": problem.question,
                    "answer": problem.answer,
                    "solution": problem.solution or "",
                    "metadata": json.dumps(dict(problem.metadata)),
                },
            )


def load_problem_set(
    name: str,
    split: str,
    *,
    source: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> list[Problem]:
    """Loads a split, building it the first time.

    Args:
      name: "gsm8k", "math", "math500" or "svamp".
      split: "train" or "test".
      source: the split's file (JSONL, Parquet or a JSON list), or a folder with SPLIT.jsonl,
        SPLIT.parquet or SPLIT.json, or MATH's folder as published, SPLIT/SUBJECT/NUMBER.json;
        None: the data cache, fetched if absent.
      cache_dir: as in `fetch.cache_folder`.

    Raises:
      DataError: no such set or split; a file that cannot be had or read; no row with an answer
        (single rows without one are left out, counted and logged); damaged records.
    """
    if name not in SPLITS:
        raise DataError(f"no problem set '{name}'. {nearest_name(name, SPLITS)}")
    if split not in SPLITS[name]:
        raise DataError(f"'{name}' has no split '{split}'; it has {', '.join(SPLITS[name])}")
    path = _file(name, split, source, cache_dir)
    data_dir = cache_folder(cache_dir) / "tfds" / f"problems_{_digest(path)[:16]}"
    builder = ProblemSet(
        source=str(path), config=f"{name}-{split}", data_dir=data_dir, file_format="array_record"
    )
    examples = read_built(builder, split)
    return check_unique([_problem(name, example) for example in examples], f"'{name}' {split}")


def _problem(name: str, example: Mapping[str, bytes]) -> Problem:
    """A problem of its record."""
    text = {field: bytes(value).decode("utf-8") for field, value in example.items()}
    return Problem(
        problem_id=text["problem_id"],
        task=name,
        question=text["question"],
        answer=text["answer"],
        solution=text["solution"] or None,
        metadata=json.loads(text["metadata"]),
    )


def _file(
    name: str,
    split: str,
    source: str | os.PathLike[str] | None,
    cache_dir: str | os.PathLike[str] | None,
) -> pathlib.Path:
    """The split's file."""
    if source is not None:
        path = pathlib.Path(source)
        found = [path, *(path / f"{split}.{suffix}" for suffix in ("jsonl", "parquet", "json"))]
        for candidate in found:
            if candidate.is_file():
                return candidate
        if name == "math" and _single_files(path / split):
            return path / split
        raise DataError(
            f"'{source}' is no file, nor a folder with {split}.jsonl, .parquet or .json; give the "
            f"file of '{name}' {split}, with the columns {_COLUMNS[name]}"
        )
    if (name, split) in ADDRESSES:
        return fetch_first([ADDRESSES[name, split]], cache_dir=cache_dir)
    raise DataError(
        f"there is no sure address for '{name}' {split}; give its file as the source, JSONL or "
        f"Parquet with the columns {_COLUMNS[name]}"
    )


def _single_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """MATH's files, one problem each: SUBJECT/NUMBER.json, in the order of subject and number."""
    found = folder.glob("*/*.json")
    return sorted(found, key=lambda file: (file.parent.name, len(file.stem), file.stem))


def _digest(path: pathlib.Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's single files."""
    if path.is_file():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in _single_files(path):
        digest.update(f"{file.relative_to(path).as_posix()} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def _rows(name: str, path: pathlib.Path) -> Sequence[Row]:
    """The rows of a file or folder, as they stand there."""
    try:
        if path.is_dir():
            prefix = f"{path.name}/"
            return [
                {
                    **json.loads(file.read_text(encoding="utf-8")),
                    "unique_id": prefix + file.relative_to(path).as_posix(),
                }
                for file in _single_files(path)
            ]
        if path.suffix == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".parquet":
            return pl.read_parquet(path).to_dicts()
        else:
            return pl.read_ndjson(path, infer_schema_length=None).to_dicts()
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"'{path}' cannot be read as '{name}' ({error}); check that it is whole"
        ) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"'{path}' is no JSON list of objects; give '{name}' as published")
    return rows


def read_problems(name: str, split: str, path: str | os.PathLike[str]) -> list[Problem]:
    """Reads a split's file as its authors wrote it.

    Rows without an answer are left out, counted and logged: MATH's training split is known to have
    two whose box is empty in copies that are in use. Ids are the rows' places, so that they do not
    depend on what is left out.

    Raises:
      DataError: unreadable, a column that is not there, or no row with an answer.
    """
    path = pathlib.Path(path)
    rows = _rows(name, path)
    problems: list[Problem] = []
    bad: list[int] = []
    for index, row in enumerate(rows):
        try:
            problem = _READERS[name](row, f"{name}-{split}-{index:05}")
        except KeyError as error:
            raise DataError(
                f"'{path}' has no column {error}; '{name}' files have the columns {_COLUMNS[name]}"
            ) from error
        except (AttributeError, TypeError, ValueError):
            problem = None  # null, or of another type, where text or a number belongs
        if problem is None or not problem.question.strip() or not problem.answer:
            bad.append(index)
        else:
            problems.append(problem)
    if not problems:
        raise DataError(
            f"'{path}': none of {len(rows)} rows has a question and an answer; '{name}' files have "
            f"the columns {_COLUMNS[name]}"
        )
    if bad:
        _LOGGER.warning(
            "'%s': left out %d of %d rows, which have no question or no answer, as row %d",
            *(path, len(bad), len(rows), bad[0]),
        )
    return problems


def _gsm8k(row: Row, problem_id: str) -> Problem | None:
    """The answer stands after "####"; marks of the calculator are taken out of the solution."""
    solution, mark, answer = row["answer"].rpartition("####")
    if not mark or not answer.strip():
        return None
    plain = "".join(part.split(">>")[-1] for part in solution.split("<<"))
    return Problem(
        problem_id=problem_id,
        task="gsm8k",
        question=row["question"],
        answer=answer.strip().replace(",", ""),
        solution=f"{plain.strip()}\n#### {answer.strip()}",
    )


def _math(row: Row, problem_id: str) -> Problem | None:
    """The answer stands in the solution's last box; both forms of the file that are in use."""
    if "problem" not in row and "reward_model" in row:
        row = {**row, **row["reward_model"]["ground_truth"]}
        row = {**row, "problem": row["question"]}
    answer = row.get("answer") or last_boxed(row["solution"])
    if answer is None:
        return None
    metadata = {
        field: str(row[field])
        for field in ("level", "type", "subject", "unique_id")
        if row.get(field) is not None
    }
    task = problem_id.split("-")[0]
    return Problem(
        problem_id=problem_id,
        task=task,
        question=row["problem"],
        answer=answer,
        solution=row["solution"],
        metadata=metadata,
    )


def _svamp(row: Row, problem_id: str) -> Problem | None:
    """Answers are floats in the file: 145.0 is 145."""
    del problem_id
    answer = float(row["Answer"])
    body = row["Body"].strip()
    body += "" if body.endswith((".", ",", "?", "!")) else "."
    return Problem(
        problem_id=f"svamp-{row['ID']}",
        task="svamp",
        question=f"{body} {row['Question'].strip()}",
        answer=str(int(answer)) if answer.is_integer() else str(answer),
        metadata={"type": str(row.get("Type", ""))},
    )


_READERS: dict[str, Callable[[Row, str], Problem | None]] = {
    "gsm8k": _gsm8k,
    "math": _math,
    "math500": _math,
    "svamp": _svamp,
}
