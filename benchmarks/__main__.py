"""Runs the short benchmarks one after the other: `python -m benchmarks`.

`benchmarks.movielens` and `benchmarks.alignment_sweep` take long, `benchmarks.faults` half an hour,
`benchmarks.grader` needs problems, `benchmarks.session_blame` a finished table, and
`benchmarks.sampling`, `sft_step`, `contrast_scoring` and `cdpo_step` fetch a model: these are run
by their own names, and so are `benchmarks.checkpoints` and `weight_products`.
"""

import subprocess
import sys

SHORT = ("moe_layer", "beam_search", "constraint", "train_step", "preference_step", "candidates")


def main() -> int:
    """Runs each in a process of its own; returns 1 if one of them failed."""
    failed = []
    for name in SHORT:
        print(f"== benchmarks.{name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
