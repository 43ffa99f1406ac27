"""Candidate sessions of a round, written as data: what the model proposed and what it is worth.

A search that was cut off goes on at the first part that is not there. Every folder says of which
model, catalogue and reward model its candidates are; candidates of others are stale.

Layout: `FOLDER/candidates.json` (origin and sizes), `FOLDER/part-00000.npz`, ...

Dimension key: U contexts, K candidates per context, M session items, T targets of the reward model.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from core_jax.arrays import Int
from core_jax.errors import ConfigError, DataError
from rec_jax.align.array_file import read_arrays, replace_file, write_arrays

MANIFEST = "candidates.json"
_CONTEXT_STREAM = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Fingerprints of what candidates were made with."""

    model: str
    """The generator: its parameters' checkpoint."""
    catalogue: str
    """The semantic IDs."""
    reward: str
    """The reward model that scored them."""
    search: str
    """Beams, contexts and batch sizes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidates:
    """Scored candidates. NumPy arrays; row u belongs to context u."""

    examples: np.ndarray
    """Int64 [U]: the training example that each context is of."""
    items: np.ndarray
    """Int32 [U, K, M]: item numbers, in the order of the search; -1 where not alive."""
    log_probs: np.ndarray
    """Float32 [U, K]: log-probability of each session under the generator; -inf: not alive."""
    targets: np.ndarray
    """Float32 [U, K, T]: the reward model's probability of each target."""
    rewards: np.ndarray
    """Float32 [U, K]: the targets, fused; -inf where not alive."""

    def __len__(self) -> int:
        return len(self.examples)


Propose = Callable[[Int[np.ndarray, " U"]], Candidates]
"""Generates and scores the candidates of some training examples."""


def choose_contexts(
    num_examples: int, num_contexts: int, *, seed: int, round_number: int
) -> Int[np.ndarray, " U"]:
    """Draws the training examples that get candidates, without replacement.

    Args:
      num_examples: training examples that there are.
      num_contexts: how many are wanted; no more than there are are drawn.
      seed: seed of the run.
      round_number: every round draws its own.

    Returns:
      Indices of examples, in random order: the first U' of them are a sample too.

    >>> choose_contexts(5, 3, seed=0, round_number=1).shape
    (3,)
    """
    words = np.random.SeedSequence((_CONTEXT_STREAM, seed, round_number))
    order = np.argsort(np.random.Philox(words).random_raw(num_examples), kind="stable")
    return order[:num_contexts].astype(np.int64)


def write_candidates(
    folder: str | os.PathLike[str],
    contexts: Int[np.ndarray, " U"],
    propose: Propose,
    *,
    origin: Origin,
    part_size: int,
) -> None:
    """Writes the candidates of all contexts, part by part; parts that are there are kept.

    Args:
      folder: where the parts lie.
      contexts: training examples.
      propose: generates and scores; called with at most `part_size` examples.
      origin: what `propose` works with.
      part_size: contexts per file.

    Raises:
      DataError: the folder has parts of another origin.
    """
    target = pathlib.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    manifest = target / MANIFEST
    if manifest.is_file():
        check_origin(_read_manifest(target), origin, target)
    else:
        replace_file(manifest, lambda path: path.write_text(_manifest(origin, len(contexts))))
    with tqdm(total=len(contexts), desc="candidates", unit="context") as bar:
        for number, first in enumerate(range(0, len(contexts), part_size)):
            part = contexts[first : first + part_size]
            path = target / f"part-{number:05d}.npz"
            if not path.is_file():
                write_arrays(path, vars(propose(part)))
            bar.update(len(part))


def read_candidates(folder: str | os.PathLike[str], *, origin: Origin) -> Candidates:
    """Reads what `write_candidates` wrote, and checks that it is of the wanted origin.

    Raises:
      DataError: there are no candidates, they are stale, a part cannot be read, or some are
        missing.
    """
    source = pathlib.Path(folder)
    found = _read_manifest(source)
    check_origin(found, origin, source)
    parts = []
    for path in sorted(source.glob("part-*.npz")):
        remedy = "remove it and run the stage again, which makes this part anew"
        parts.append(read_arrays(path, remedy=remedy))
    num_contexts = sum(len(part["examples"]) for part in parts)
    if num_contexts != found["num_contexts"]:
        raise DataError(
            f"'{source}' has the candidates of {num_contexts} of {found['num_contexts']} contexts; "
            "run the stage again, which makes the missing parts"
        )
    return Candidates(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def check_origin(found: dict[str, object], expected: Origin, folder: pathlib.Path) -> None:
    """Raises a DataError that names each fingerprint in which candidates are stale."""
    stale = [
        f"{field.name} {found.get(field.name)} (now {getattr(expected, field.name)})"
        for field in dataclasses.fields(expected)
        if found.get(field.name) != getattr(expected, field.name)
    ]
    if stale:
        raise DataError(
            f"the candidates in '{folder}' are stale: they were made with {', '.join(stale)}; "
            "remove the folder and run the round again"
        )


def check_num_beams(num_beams: int, num_leaves: int) -> None:
    """Raises a ConfigError if there are more candidates than the catalogue has semantic IDs."""
    if num_beams > num_leaves:
        raise ConfigError(
            f"candidates.num_beams is {num_beams}, but the catalogue has only {num_leaves} "
            f"semantic IDs; set candidates.num_beams to at most {num_leaves}"
        )


def _manifest(origin: Origin, num_contexts: int) -> str:
    return json.dumps(dataclasses.asdict(origin) | {"num_contexts": num_contexts}, indent=1)


def _read_manifest(folder: pathlib.Path) -> dict[str, object]:
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"'{folder}' has no candidates ('{MANIFEST}' is absent); make them first")
    return json.loads(path.read_text(encoding="utf-8"))
