r"""Worked examples for few-shot prompts, written for this project in the style of the papers.

Eight word problems with a chain of thought that ends "The answer is N." (the form of Wei et al.,
2022, arXiv:2201.11903), and four problems in LaTeX whose solutions end in a box (the form of
Lewkowycz et al., 2022, arXiv:2206.14858). None is taken from a data set.

Dimension key: none.
"""

WORD_PROBLEMS = (
    (
        "A gardener plants 6 rows of tulips with 8 bulbs in each row. Frost kills 11 of them. How "
        "many tulips come up?",
        "She plants 6 * 8 = 48 bulbs. Frost kills 11, so 48 - 11 = 37 come up. The answer is 37.",
    ),
    (
        "Omar reads 14 pages on every school day and 25 pages on each day of the weekend. How many "
        "pages does he read in one week?",
        "Five school days give 5 * 14 = 70 pages. Two days of the weekend give 2 * 25 = 50 pages. "
        "Together that is 70 + 50 = 120 pages. The answer is 120.",
    ),
    (
        "A ferry takes 9 cars per trip. How many trips does it need for 50 cars?",
        "Five trips take 5 * 9 = 45 cars. 50 - 45 = 5 cars are left, which need one more trip. So "
        "it needs 5 + 1 = 6 trips. The answer is 6.",
    ),
    (
        "Lena has 40 euros. She buys three notebooks at 4 euros each and a lamp at half of what is "
        "left. How much money has she then?",
        "The notebooks cost 3 * 4 = 12 euros, which leaves 40 - 12 = 28 euros. The lamp costs "
        "28 / 2 = 14 euros. She has 28 - 14 = 14 euros. The answer is 14.",
    ),
    (
        "A tank holds 90 litres and is one third full. A tap adds 12 litres per minute. After how "
        "many minutes is the tank full?",
        "One third of 90 litres is 30 litres, so 90 - 30 = 60 litres are missing. At 12 litres per "
        "minute that takes 60 / 12 = 5 minutes. The answer is 5.",
    ),
    (
        "In a choir of 36 singers a quarter are basses, and there are twice as many sopranos as "
        "basses. How many singers are neither?",
        "There are 36 / 4 = 9 basses and 2 * 9 = 18 sopranos. That leaves 36 - 9 - 18 = 9 singers. "
        "The answer is 9.",
    ),
    (
        "A jacket costs 80 dollars. In a sale the price falls by 15 percent. What does the jacket "
        "cost in the sale?",
        "15 percent of 80 dollars is 0.15 * 80 = 12 dollars. The price is 80 - 12 = 68 dollars. "
        "The answer is 68.",
    ),
    (
        "Ines is 5 years older than Paul. In three years their ages will add up to 41. How old is "
        "Paul now?",
        "In three years both are 3 years older, so now their ages add up to 41 - 6 = 35. Without "
        "the 5 years that Ines is older, that is 35 - 5 = 30, which is twice Paul's age. Paul is "
        "30 / 2 = 15. The answer is 15.",
    ),
)
"""(question, solution), the solution ending in "The answer is N."."""

LATEX_PROBLEMS = (
    (
        r"For which $x$ is $\frac{x + 3}{2} = 7$?",
        r"Multiplying by 2 gives $x + 3 = 14$, so $x = 14 - 3 = 11$. The answer is $\boxed{11}$.",
    ),
    (
        r"A fair die is thrown twice. With what probability do the two numbers add up to 4?",
        r"Of the $6 \cdot 6 = 36$ outcomes, $(1, 3)$, $(2, 2)$ and $(3, 1)$ add up to 4. The "
        r"probability is $\frac{3}{36} = \frac{1}{12}$. The answer is $\boxed{\frac{1}{12}}$.",
    ),
    (
        r"Simplify $\sqrt{50} - \sqrt{8}$.",
        r"We have $\sqrt{50} = 5\sqrt{2}$ and $\sqrt{8} = 2\sqrt{2}$. The difference is "
        r"$3\sqrt{2}$. The answer is $\boxed{3\sqrt{2}}$.",
    ),
    (
        r"How many positive divisors does $2^3 \cdot 5^2$ have?",
        r"A divisor is $2^a \cdot 5^b$ with $0 \le a \le 3$ and $0 \le b \le 2$. That makes "
        r"$4 \cdot 3 = 12$ divisors. The answer is $\boxed{12}$.",
    ),
)
"""(question, solution), the solution ending in a box."""
