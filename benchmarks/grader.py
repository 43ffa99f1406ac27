"""The strict grader on real answers: verdicts, disagreements with math-verify alone, speed.

    python -m benchmarks.grader --folder FOLDER
    python -m benchmarks.grader --folder FOLDER --sets math500 --show 50

FOLDER holds gsm8k/test.jsonl, math/test.parquet and math500/test.jsonl, those that are there are
used; gsm8k/example_model_solutions.jsonl adds labelled solutions. Pairs of a set are each gold
answer with itself (as the whole reference solution), with itself spelled otherwise, and with the
next problem's gold answer, which shows false positives. Throughput is answers per second on warm
workers, over distinct pairs.
"""

import argparse
import collections
import json
import logging
import pathlib
import re
import time
from collections.abc import Sequence

import polars as pl
from math_verify import parse, verify

from reasoning_jax.answers.extraction import extract, last_boxed
from reasoning_jax.answers.grader import Grader, GraderConfig
from reasoning_jax.answers.verdict import GraderKind, OfficialTask, Verdict

SETS = ("gsm8k", "math", "math500")
Pair = tuple[str, str]


def main() -> None:
    """Prints a table per set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", required=True, type=pathlib.Path)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=SETS)
    parser.add_argument("--show", type=int, default=12, help="disagreements shown per table")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    for name in arguments.sets:
        solutions = read_solutions(arguments.folder, name)
        if not solutions:
            print(f"{name}: not in {arguments.folder}, left out")
            continue
        golds = [gold for gold, _ in solutions]
        following = golds[1:] + golds[:1]
        with Grader(GraderConfig(num_workers=arguments.workers)) as grader:
            grader.equivalents([("x+1", "1+x"), ("x+2", "2+x")])  # the workers start
            found, seconds = timed(grader, solutions)
            report(f"{name}, gold with itself", golds, found, seconds, arguments.show)
            written = [(gold, rf"\boxed{{{respelled(gold)}}}") for gold in golds]
            found, seconds = timed(grader, written)
            report(f"{name}, gold respelled", golds, found, seconds, arguments.show)
            pairs = list(zip(golds, following, strict=True))
            found, seconds = timed(grader, [(gold, rf"\boxed{{{one}}}") for gold, one in pairs])
            report(f"{name}, gold with the next gold", golds, found, seconds, arguments.show)
            slowest(grader, pairs)
    labelled(arguments.folder, arguments.workers)


def read_solutions(folder: pathlib.Path, name: str) -> list[Pair]:
    """Gold answers and reference solutions of a set; empty where the file is absent."""
    path = folder / name / ("test.parquet" if name == "math" else "test.jsonl")
    if not path.is_file():
        return []
    if name == "gsm8k":
        rows = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
        return [(row.rpartition("####")[2].strip(), row) for row in rows]
    if name == "math":
        texts = pl.read_parquet(path)["solution"].to_list()
        return [(last_boxed(text) or "", text) for text in texts]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["answer"], row["solution"]) for row in rows]


def respelled(gold: str) -> str:
    r"""The same answer in other words: fractions as ((a)/(b)), sized brackets, + 0."""
    text = re.sub(
        r"(?<![0-9])(?<![0-9] )\\[dt]?frac\{(-?[0-9]+)\}\{([0-9]+)\}", r"((\1)/(\2))", gold
    )
    text = re.sub(r"\\sqrt\{([0-9]+)\}", r"\\sqrt{(\1)}", text).replace("+", " + 0 + ")
    if re.fullmatch(r"[0-9,]+|[0-9,]*\.[0-9]+", text):
        return text + ("0" if "." in text else ".0")
    return r"\left(" + text[1:-1] + r"\right)" if re.fullmatch(r"\([^()]*\)", text) else text


def timed(grader: Grader, pairs: Sequence[Pair]) -> tuple[list[Verdict], float]:
    """Verdicts and seconds."""
    start = time.perf_counter()
    found = grader.grade(pairs)
    return found, time.perf_counter() - start


def math_verify_alone(gold: str, answer: str) -> bool:
    """What math-verify says without anything of ours, within its own limits of 5 seconds."""
    return verify(parse(f"${gold}$"), parse(f"${answer}$"))


def report(
    title: str, golds: Sequence[str], found: Sequence[Verdict], seconds: float, show: int
) -> None:
    """Prints the agreement table and the first disagreements."""
    table: collections.Counter[tuple[bool, bool]] = collections.Counter()
    disagreements = []
    known: dict[Pair, bool] = {}
    for gold, verdict in zip(golds, found, strict=True):
        pair = (gold, verdict.answer or "")
        if pair not in known:
            known[pair] = math_verify_alone(*pair)
        table[verdict.is_correct, known[pair]] += 1
        if verdict.is_correct != known[pair]:
            disagreements.append((pair, verdict))
    methods = collections.Counter(verdict.method for verdict in found)
    print(f"== {title}: {len(found)} answers, {len(found) / seconds:,.0f} answers/s")
    print(f"   strict right: {sum(verdict.is_correct for verdict in found)}; methods {methods}")
    print("   strict, math-verify alone: " + str({key: table[key] for key in sorted(table)}))
    for pair, verdict in disagreements[:show]:
        print(f"   strict {verdict.is_correct} ({verdict.method}): {pair[0]!r} and {pair[1]!r}")


def slowest(grader: Grader, pairs: Sequence[Pair]) -> None:
    """Prints the slowest of the pairs that need algebra, one by one."""
    hard = [pair for pair in dict.fromkeys(pairs) if grader.cheap(*pair) is None][:200]
    times = []
    with Grader(GraderConfig(num_workers=1)) as alone:
        alone.equivalent("x+1", "1+x")
        for pair in hard:
            start = time.perf_counter()
            alone.equivalent(*pair)
            times.append((time.perf_counter() - start, pair))
    if times:
        total = sum(seconds for seconds, _ in times)
        print(f"   algebra, one worker: {len(times) / total:,.0f} answers/s; slowest {max(times)}")


def labelled(folder: pathlib.Path, workers: int) -> None:
    """Compares both graders with the labels of GSM8K's published model solutions."""
    path = folder / "gsm8k" / "example_model_solutions.jsonl"
    if not path.is_file():
        return
    pairs, labels = [], []
    for row in map(json.loads, path.read_text().splitlines()):
        gold = extract(str(row["ground_truth"]))
        for solution in (value for value in row.values() if isinstance(value, dict)):
            pairs.append((gold.answer if gold else "", solution["solution"]))
            labels.append(bool(solution["is_correct"]))
    for kind in GraderKind:
        config = GraderConfig(kind=kind, task=OfficialTask.GSM8K, num_workers=workers)
        with Grader(config) as grader:
            found, seconds = timed(grader, pairs)
        table = collections.Counter(
            (verdict.is_correct, label) for verdict, label in zip(found, labels, strict=True)
        )
        rate = len(found) / seconds
        print(f"== gsm8k, labelled solutions, {kind.value}: {rate:,.0f} answers/s")
        print(f"   grader, label: { {key: table[key] for key in sorted(table)} }")
        for (gold, _), verdict, label in zip(pairs, found, labels, strict=True):
            if verdict.is_correct != label and kind is GraderKind.STRICT:
                print(f"   label {label}: {gold!r} and {verdict.answer!r} ({verdict.method})")


if __name__ == "__main__":
    main()
