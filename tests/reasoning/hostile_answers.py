"""Answers that make a naive grader hang, run out of memory or crash."""

import random

_FIXED = (
    "9^{9^{9^9}}",
    "9^9^9^9^9",
    "9**9**9**9",
    "2^{2^{2^{2^{2^{2}}}}}",
    "10^{999999999}",
    "10^{-999999999}",
    "1e999999999",
    "99999!",
    "((9!)!)!",
    "9!!!!!!!!",
    r"\frac{1}{2004!}",
    r"\binom{99999999}{49999999}",
    r"\sum_{n=1}^{10000000} \frac{1}{n}",
    r"\prod_{n=1}^{99999999} n",
    r"\int_0^1 x^{x^{x^{x}}} dx",
    r"\int e^{-x^2} \sin(x^3) \log(x+1) dx",
    r"\lim_{x \to 0} \frac{\sin(\sin(\sin x))}{x^{7}}",
    "(" * 1_000_000,
    "{" * 1_000_000,
    "[" * 500_000 + "]" * 500_000,
    r"\left(" * 100_000,
    r"\frac{1}{" * 5_000 + "2" + "}" * 5_000,
    r"\frac{1}{1+" * 18 + "2" + "}" * 18,
    r"\sqrt{" * 900 + "2" + "}" * 900,
    r"\sqrt{1+" * 15 + "2" + "}" * 15,
    "1" * 1_000_000,
    "1" * 5_000,
    "0." + "3" * 100_000,
    "1/" * 100_000 + "1",
    "-" * 900 + "1",
    "1+" * 400 + "1",
    "(x+1)^{9999}",
    "(x+y+z+w)^{200}",
    "(a+b)(c+d)(e+f)(g+h)(i+j)(k+l)(m+n)(o+p)(q+r)(s+t)^{40}",
    r"\sin(" * 15 + "x" + ")" * 15,
    "\u0663\u0664\u0665" * 1_000,
    "\uff11\uff12\uff13",
    "\u00b2\u00b3\u00b9",
    "\u2167 + \u2460",
    "\U0001d7d8" * 500,
    "\x00",
    "5\x00" * 100,
    "\ud800",
    "\u202e5\u202c",
    r"\def\a{\a\a}\a",
    r"\newcommand{\x}{\x\x}\x",
    r"\input{/dev/zero}",
    r"\csname" * 100,
    r"\begin{pmatrix}" + "1 & 2 \\\\ " * 90 + r"\end{pmatrix}",
    ",".join(map(str, range(5_000))),
    r"\{" + ",".join(f"x_{index}" for index in range(50)) + r"\}",
    "__import__('os').system('sleep 60')",
    "(lambda: [0]*10**10)()",
    "7" + "\\" * 5_000,
    "$" * 5_000,
    r"x = y = z = x = y = z = x" * 20,
    "x^5 + x + 1 = 0, y^7 - y + x = 0",
)
FIFTY = tuple(_FIXED)

_ATOMS = (
    *("9", "x", "0", "-1", "10^{9}", r"\pi", "99999999", "1.5e300", "n!", "\u0663", r"\infty"),
    *("y", "e", "i", "0.1", r"\text{a}", "%", r"\$", r"\begin{matrix}", "{", "}", "(", ")]"),
)
_TEMPLATES = (
    *("{0}^{{{1}}}", r"\frac{{{0}}}{{{1}}}", r"\sqrt{{{0}}}", "({0}+{1})", "({0})({1})", "{0}!"),
    *(
        r"\int {0} dx",
        r"\sum_{{n=1}}^{{{1}}} {0}",
        r"\log({0})",
        r"\sin({0})",
        "{0},{1}",
        "{0}={1}",
    ),
    *(r"\{{{0},{1}\}}", r"\begin{{pmatrix}}{0}\\{1}\end{{pmatrix}}", r"\binom{{{0}}}{{{1}}}"),
)


def generated(seed: int, number: int) -> list[str]:
    """Random nested expressions; a tenth are repeated until they are long."""
    chance = random.Random(seed)
    found = []
    for _ in range(number):
        answer = chance.choice(_ATOMS)
        for _ in range(chance.randint(1, 12)):
            parts = [answer, chance.choice(_ATOMS)]
            if chance.random() < 0.2:
                parts.reverse()
            answer = chance.choice(_TEMPLATES).format(*parts)[:5_000]
        found.append(answer * (chance.randint(2, 2_000) if chance.random() < 0.1 else 1))
    return found
