"""Made-up trajectories of problems whose solutions are known by their answers."""

from reasoning_jax.data.trajectories import Trajectory


def solution(problem="p1", sample=0, answer: str | None = "7", is_correct=True, **changes):
    """One graded solution; its text names the sample, so that all texts differ."""
    fields = {
        "problem_id": problem,
        "sample": sample,
        "task": "sums",
        "seed": 3,
        "prompt": f"{problem}=",
        "response": f"{sample}: The answer is {answer}.",
        "token_ids": (2, 3, 5, 7, 11),
        "response_start": 2,
        "finish": "stop",
        "answer": answer,
        "is_correct": is_correct,
        "official_correct": is_correct,
        "model": "m",
        "tokenizer": "t",
    }
    return Trajectory(**fields | changes)


def solutions(answers, *, right=("7",), problem="p1"):
    """A problem's solutions by their answers; those of `right` are graded as correct."""
    return [
        solution(problem, sample, answer, answer in right) for sample, answer in enumerate(answers)
    ]
