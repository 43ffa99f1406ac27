"""A worker process that compares answers: one JSON line in, one out. `pool.py` starts it.

    python -m reasoning_jax.answers.worker MEMORY_MB

It says "ready" once `math-verify` is loaded and warm, so that a time limit counts only work.

Dimension key: none.
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

_RECURSION = 3000
_WARM_UP = ((r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), ("x^2-1", "(x-1)(x+1)"))


def limit_memory(megabytes: int) -> None:
    """Bounds what this process may allocate; where the system cannot, says so and goes on."""
    import resource

    size = megabytes * 2**20
    for kind, limit in ((resource.RLIMIT_AS, size), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError) as error:
            print(f"no memory limit of {megabytes} MB on this system: {error}", file=sys.stderr)


def judge(request: dict[str, str]) -> tuple[bool, str]:
    """Compares one pair by the rules that the request names."""
    from reasoning_jax.answers.official import math_equal
    from reasoning_jax.answers.strict import Rules, compare
    from reasoning_jax.answers.symbolic import equal_sides, symbolic
    from reasoning_jax.answers.verdict import ListOrder

    gold, answer = request["gold"], request["answer"]
    if request["kind"] == "official":
        return math_equal(gold, answer, equal_sides) or (False, "unparsed")
    rules = Rules(symbolic=symbolic, order=ListOrder(request["order"]))
    return compare(gold, answer, rules) or (False, "unparsed")


Judge = Callable[[dict[str, str]], tuple[bool, str]]


def answered(request: dict[str, str], judge: Judge = judge) -> tuple[bool, str]:
    """Compares one pair; whatever goes wrong in it is a verdict of its own."""
    try:
        return judge(request)
    except MemoryError:
        return False, "memory"
    except Exception as error:  # sympy and antlr raise errors of any type on malformed input
        print(f"{type(error).__name__} on {request['answer'][:200]!r}", file=sys.stderr)
        return False, "unparsed"


def serve(judge: Judge, warm_up: Sequence[dict[str, str]]) -> None:
    """Answers requests until the input ends; the program's argument is its memory in megabytes."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not get between the replies
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    limit_memory(int(sys.argv[1]))
    sys.setrecursionlimit(_RECURSION)
    for request in warm_up:
        judge(request)
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answered(json.loads(line), judge)), file=replies, flush=True)


def main() -> None:
    """Compares answers, once math-verify is loaded and warm."""
    warm_up = [
        {"gold": gold, "answer": answer, "kind": kind, "order": "ordered"}
        for kind in ("strict", "official")
        for gold, answer in _WARM_UP
    ]
    serve(judge, warm_up)


if __name__ == "__main__":
    main()
