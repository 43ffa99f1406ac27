"""Random faults over a small pipeline: does every run go on, and end as one that had none?

    python -m benchmarks.faults [--faults 50] [--seed 0] [--kinds sigterm ...] [--json]

The pipeline (log -> sessions -> semantic IDs -> OneRec, on a made-up log) runs in processes of its
own, the command of the README. It gets one kind of fault a few times, at moments drawn from the
seed, is started again after each, and is then left to finish. Its last checkpoint (every array,
the position in the data) is compared, bit for bit, with that of an unbroken run on the same mesh.

| kind | what happens |
|---|---|
| sigterm | SIGTERM, the notice that a machine is taken away, at a random moment |
| sigkill | SIGKILL to the whole process group at a random moment |
| kill_in_save | SIGKILL while a checkpoint is being written (its temporary folder is there) |
| truncated | SIGKILL, then a file of the newest checkpoint is cut to half |
| flipped | SIGKILL, then one bit of a file of the newest checkpoint is turned |
| full_disk | the disk takes no more from a random moment on: a clear error; then there is space |
| lost_shard | SIGKILL, then a finished stage's file is lost: an error names it; then it is back |
| kill_one | SIGKILL to one of two processes that train together: the supervisor ends the other |

The disk of `full_disk` is a small tmpfs that a file fills; without the right to mount one it is a
limit of file sizes. "extra" is what a run took beyond the unbroken one, for each fault: the work
done again and the start of a process.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks.faults_pipeline import CHECKPOINT_EVERY, LONGEST_WAIT, Bench
from rec_jax.stages import prepare, pretrain, tokenize

FAULTS_PER_RUN = 4
DISK_SIZE = "64m"


@dataclasses.dataclass
class Tally:
    """What became of one kind of fault."""

    faults: int = 0
    resumed: int = 0
    runs: int = 0
    identical: int = 0
    seconds: float = 0.0


def checkpoints(run: pathlib.Path) -> pathlib.Path:
    """Where the training stage keeps its checkpoints."""
    return run / "stages" / pretrain.NAME / "checkpoints"


def steps(run: pathlib.Path) -> list[int]:
    """The complete steps of the training stage, oldest first."""
    return sorted(int(path.name) for path in checkpoints(run).glob("*") if path.name.isdigit())


def is_done(run: pathlib.Path, stage: str) -> bool:
    """Whether a stage is complete."""
    return (run / "stages" / stage / "done.json").is_file()


def sigterm(bench: Bench, run: pathlib.Path) -> bool:
    """True: the process was asked to end, and did."""
    return bench.strike(run, signal.SIGTERM, bench.soon()) is not None


def sigkill(bench: Bench, run: pathlib.Path) -> bool:
    """True: the process was killed."""
    return bench.strike(run, signal.SIGKILL, bench.soon()) is not None


def kill_in_save(bench: Bench, run: pathlib.Path) -> bool:
    """True: the process was killed while it wrote a checkpoint that had not been there."""
    after = max(steps(run), default=0) + CHECKPOINT_EVERY * bench.draw.randint(0, 2)
    folder = checkpoints(run)

    def moment() -> bool:
        names = os.listdir(folder) if folder.is_dir() else []
        writing = [name for name in names if "orbax-checkpoint-tmp" in name]
        return any(int(name.split(".")[0]) > after for name in writing)

    if bench.strike(run, signal.SIGKILL, moment) is None:
        return False
    return any("orbax-checkpoint-tmp" in name for name in os.listdir(folder))


def _damage(bench: Bench, run: pathlib.Path, change: Callable[[bytearray], bytearray]) -> bool:
    """Kills in training with two new steps there, and damages a file of the newest."""
    after = max(steps(run), default=0)

    def moment() -> bool:
        return len([step for step in steps(run) if step > after]) >= 2

    if bench.strike(run, signal.SIGKILL, moment) is None or is_done(run, pretrain.NAME):
        return False
    folder = checkpoints(run) / str(steps(run)[-1])
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    path = bench.draw.choice(files)
    path.write_bytes(change(bytearray(path.read_bytes())))
    return True


def truncated(bench: Bench, run: pathlib.Path) -> bool:
    """True: a file of the newest checkpoint was cut to half."""
    return _damage(bench, run, lambda content: content[: len(content) // 2])


def flipped(bench: Bench, run: pathlib.Path) -> bool:
    """True: a bit of a file of the newest checkpoint was turned."""

    def flip(content: bytearray) -> bytearray:
        content[bench.draw.randrange(len(content))] ^= 1 << bench.draw.randrange(8)
        return content

    return _damage(bench, run, flip)


def full_disk(bench: Bench, run: pathlib.Path) -> bool:
    """True: the run ended with an error that says that the disk is full."""
    before = len(bench.output(run).read_text()) if bench.output(run).exists() else 0
    moment, ballast = bench.soon(), run / "ballast"
    with bench.started(run) as process:
        while not moment() and process.poll() is None:
            time.sleep(0.01)
        if os.path.ismount(run):
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        else:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (256, resource.RLIM_INFINITY))
        code = process.wait(LONGEST_WAIT)
    ballast.unlink(missing_ok=True)
    if code == 0:
        return False
    text = bench.output(run).read_text()[before:]
    if os.path.ismount(run) and "No space left" not in text.splitlines()[-1]:
        raise SystemExit(f"a full disk ended a run without a clear error:\n{text[-2000:]}")
    return True


def lost_shard(bench: Bench, run: pathlib.Path) -> bool:
    """True: without a file of a finished stage the run ended with an error that names it."""
    ready = bench.soon()
    if bench.strike(
        run, signal.SIGKILL, lambda: ready() and is_done(run, tokenize.NAME)
    ) is None or is_done(run, pretrain.NAME):
        return False
    folder = run / "stages" / bench.draw.choice((prepare.NAME, tokenize.NAME))
    files = json.loads((folder / "done.json").read_text())["files"]
    path = folder / bench.draw.choice(sorted(files))
    content = path.read_bytes()
    path.unlink()
    with bench.started(run) as process:
        code = process.wait(LONGEST_WAIT)
    text = bench.output(run).read_text()
    path.write_bytes(content)
    if code != 1 or f"'{path}'" not in text.splitlines()[-1]:
        raise SystemExit(f"the loss of {path} was not named:\n{text[-2000:]}")
    return True


def kill_one(bench: Bench, run: pathlib.Path) -> bool:
    """True: one process of two was killed, its supervisor named it, and ended the other."""
    ready, after = bench.soon(), max(steps(run), default=0)
    with bench.started(run) as process:
        deadline = time.monotonic() + LONGEST_WAIT
        while not (ready() and max(steps(run), default=0) > after and len(_children(process)) == 2):
            if process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        os.kill(bench.draw.choice(_children(process)), signal.SIGKILL)
        code = process.wait(LONGEST_WAIT)
    text = bench.output(run).read_text()
    if code == 0 or not re.search(r"supervisor: .*process [01]\b", text):
        raise SystemExit(f"the death of a process was not named:\n{text[-2000:]}")
    return True


def _children(process: subprocess.Popen) -> list[int]:
    """The processes that one has started."""
    try:
        path = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
        return [int(word) for word in path.read_text().split()]
    except OSError:
        return []


KINDS = {
    fault.__name__: fault
    for fault in (
        sigterm,
        sigkill,
        kill_in_save,
        truncated,
        flipped,
        full_disk,
        lost_shard,
        kill_one,
    )
}


def results(run: pathlib.Path) -> dict[str, bytes]:
    """What a run leaves: the arrays of the last checkpoint, its position in the data."""
    folder = checkpoints(run) / str(steps(run)[-1])
    arrays = ocp.PyTreeCheckpointHandler().restore(
        folder / "state",
        args=ocp.args.PyTreeRestore(
            restore_args=jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree,
            )
        ),
    )
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    found = {f"{jax.tree_util.keystr(path)}": np.asarray(leaf).tobytes() for path, leaf in leaves}
    assert len(found) > 10, "the checkpoint has lost its arrays"
    found["meta"] = (folder / "meta" / "metadata").read_bytes()
    return found


@contextlib.contextmanager
def disk_of(run: pathlib.Path, kind: str) -> Iterator[None]:
    """A small disk of its own for a run that is to fill it, where one can be mounted."""
    mounted = False
    if kind == full_disk.__name__ and shutil.which("mount"):
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}", "none", str(run)]
        run.mkdir()
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(run)], check=True)


def run_with(bench: Bench, kind: str, most: int, name: str, expected: dict, tally: Tally) -> None:
    """One run that gets up to `most` faults of a kind and is then left to finish."""
    run = bench.folder / name
    with disk_of(run, kind):
        bench.open(name)
        began, struck = time.monotonic(), 0
        while struck < most and not is_done(run, pretrain.NAME) and KINDS[kind](bench, run):
            struck += 1
        finished = bench.finish(run)
        whole = time.monotonic() - began
        if not struck:  # the machine has become faster: moments would fall behind the end again
            bench.whole = min(bench.whole, whole)
        tally.seconds += whole - bench.whole
        tally.runs += 1
        tally.faults += struck
        tally.resumed += struck if finished else 0
        found = results(run) if finished else {}
        different = [key for key in expected if found.get(key) != expected[key]]
        tally.identical += not different
        note = f"; differs in {different[:3]}" if different else ""
        print(
            f"{name}: {struck} faults, finished {finished}{note}, in all {tally}",
            file=sys.stderr,
            flush=True,
        )
    shutil.rmtree(run, ignore_errors=True)


def strike_all(bench: Bench, tallies: dict[str, Tally], wanted: Mapping[str, int]) -> None:
    """The unbroken run of some kinds of fault, then their runs."""
    expected: dict[str, bytes] = {}
    mesh = "2 processes" if bench.pair else "1 process"
    for name in ("first", "unbroken"):  # the first fills the cache of compiled programs
        name = f"{name}_{mesh[0]}"
        run, began = bench.open(name), time.monotonic()
        if not bench.finish(run):
            raise SystemExit("the unbroken run fails")
        bench.whole, expected = time.monotonic() - began, results(run)
    print(f"unbroken, {mesh}: {bench.whole:.1f} s", file=sys.stderr, flush=True)
    for kind, tally in tallies.items():
        while tally.faults < wanted[kind] and tally.runs < 3 * wanted[kind]:
            most = min(FAULTS_PER_RUN, wanted[kind] - tally.faults)
            run_with(bench, kind, most, f"{kind}_{tally.runs}", expected, tally)


def table(tallies: dict[str, Tally]) -> str:
    """The tallies as a table of Markdown."""
    lines = [
        "| kind | faults | resumed | runs | identical | extra seconds per fault |",
        "|---|---|---|---|---|---|",
    ]
    total = Tally()
    for tally in tallies.values():
        for field in dataclasses.fields(Tally):
            setattr(total, field.name, getattr(total, field.name) + getattr(tally, field.name))
    for kind, tally in {**tallies, "all": total}.items():
        extra = f"{tally.seconds / tally.faults:.1f}" if tally.faults else "-"
        lines.append(
            f"| {kind} | {tally.faults} | {tally.resumed} | {tally.runs} | {tally.identical} "
            f"| {extra} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Strikes, compares, prints the table; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--faults", type=int, default=50, help="how many in all")
    parser.add_argument("--seed", type=int, default=0, help="seed of kinds and moments")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    options = parser.parse_args()
    wanted = collections.Counter(
        options.kinds[number % len(options.kinds)] for number in range(options.faults)
    )
    tallies = {kind: Tally() for kind in wanted}
    with tempfile.TemporaryDirectory(prefix="alignax_faults_") as folder:
        bench = Bench(pathlib.Path(folder), random.Random(options.seed))
        for pair in (False, True):
            kinds = {k: t for k, t in tallies.items() if (k == kill_one.__name__) == pair}
            if kinds:
                bench.pair = pair
                strike_all(bench, kinds, wanted)
    fields = {kind: dataclasses.asdict(tally) for kind, tally in tallies.items()}
    print(json.dumps(fields) if options.json else table(tallies))
    lost = any(t.resumed < t.faults or t.identical < t.runs for t in tallies.values())
    return int(lost or any(tallies[kind].faults < wanted[kind] for kind in wanted))


if __name__ == "__main__":
    sys.exit(main())
