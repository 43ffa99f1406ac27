"""Made-up solutions with scores and rollouts, which look like those of a run."""

import math
import random
import re

from reasoning_jax.view.view_data import ViewData, ViewProblem, ViewSolution

EVIL = (
    "</script><script>window.broken=1</script><img src=x onerror='window.broken=1'>&amp; <b>b</b>"
)
"""A text that must stay a text."""
_WORDS = re.compile(r"\n| ?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]")
_NAMES = ("Maya", "Tom", "Ines", "Ravi", "Lena", "Omar", "Yuki", "Sara", "Noah", "Zoe", "Ben")
_THINGS = ("tickets", "apples", "stamps", "pencils", "marbles", "cards", "books")


def pieces_of(text):
    """A text cut as byte-level BPE with single digits would cut it."""
    pieces = tuple(_WORDS.findall(text))
    assert "".join(pieces) == text
    return pieces


def written_solution(first, price, second, *, slip=0):
    """Three steps; the second one is wrong by `slip`, and what follows follows from it."""
    product = first * price
    total = product + second + slip
    return (
        f"First we find what was spent: {first} * {price} = {product}.\n"
        f"Then we add the {second} from before: {product} + {second} = {total}.\n"
        f"After that we halve it, since two friends share: {total} / 2 = {total // 2}.\n"
        f"The answer is {total // 2}"
    )


def numbered_solution(rng, text, *, sample, gold, wrong_at=None, slip_at=None, agrees=True):
    """A solution whose scores dip and whose rollouts fail from the token `wrong_at` on."""
    pieces = pieces_of(text)
    low = wrong_at
    if wrong_at is not None and not agrees:
        low = (wrong_at + len(pieces) // 2) % len(pieces)
    scores = [1 - 0.12 * rng.random() ** 3 for _ in pieces]
    for index, piece in enumerate(pieces):
        if piece.strip().isdigit():
            scores[index] = 0.55 + 0.44 * rng.random()
    success = None
    if wrong_at is not None:
        scores[low], scores[(low + 1) % len(pieces)] = 0.004 + 0.05 * rng.random(), 0.21
        level, success = 0.62, []
        for index in range(len(pieces)):
            level = min(0.95, max(0.2, level + 0.12 * (rng.random() - 0.45)))
            after = rng.choice((0, 0, 0, 1)) / 64 if index > wrong_at else 0.0
            success.append(round(64 * level) / 64 if index < wrong_at else after)
    positive = [1.2 * math.log(score) - 0.3 * rng.random() ** 2 for score in scores]
    ahead = [-0.9 * math.log(score) for score in scores]
    negative = [min(-0.01, one + more) for one, more in zip(positive, ahead, strict=True)]
    return ViewSolution(
        sample=sample,
        pieces=(*pieces, ""),
        is_correct=wrong_at is None,
        answer=gold if wrong_at is None else text.rsplit(" ", 1)[1],
        log_scores=(*map(math.log, scores), -0.0),
        positive=(*positive, -0.01),
        negative=(*negative, -0.01),
        success=success and (*success, 0.0),
        critical=wrong_at,
        first_error=slip_at,
    )


def made_problem(number):
    """Problem `number`, with a wrong and a right solution."""
    rng = random.Random(number)
    first, price, second = rng.randint(3, 19), rng.randint(2, 12), 2 * rng.randint(4, 40)
    first += first * price % 2
    name, things = rng.choice(_NAMES), rng.choice(_THINGS)
    gold = (first * price + second) // 2
    wrong = written_solution(first, price, second, slip=2 * rng.choice((-10, -5, 1, 4, 10)))
    pieces = pieces_of(wrong)
    equals = [index for index, piece in enumerate(pieces) if piece == " ="]
    slip_at = equals[1] + 1
    at = slip_at if number % 5 else slip_at - 7
    return ViewProblem(
        problem_id=f"steps-{number:04d}",
        question=f"{name} buys {first} {things} at {price} dollars each and had already spent "
        f"{second} dollars. Two friends share the cost. How many dollars does each of them pay?",
        gold=str(gold),
        solutions=(
            numbered_solution(
                rng,
                wrong,
                sample=rng.randint(0, 63),
                gold=str(gold),
                wrong_at=at,
                slip_at=slip_at,
                agrees=number % 3 != 2,
            ),
            numbered_solution(
                rng,
                written_solution(first, price, second),
                sample=rng.randint(0, 63),
                gold=str(gold),
            ),
        ),
    )


def made_view(count):
    """A view of so many problems."""
    return ViewData(
        title="Critical tokens of wrong solutions",
        problems=tuple(made_problem(number) for number in range(count)),
        facts={"Run": "made up", "beta": "1"},
    )
