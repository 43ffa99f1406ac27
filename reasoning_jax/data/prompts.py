"""From a problem to the text that a model is given.

Dimension key: none.
"""

import dataclasses
import enum

from core_jax.errors import ConfigError
from reasoning_jax.data.problems import Problem
from reasoning_jax.data.shots import LATEX_PROBLEMS, WORD_PROBLEMS
from reasoning_jax.text.chat import ChatTemplate, Message


class PromptStyle(enum.Enum):
    """How a question is put."""

    CHAT = "chat"
    """As a user's turn in the model's chat template."""
    PLAIN = "plain"
    """"Question: ...", then "Answer:"; for base models and models made from scratch."""
    WORD_SHOTS = "word_shots"
    """After eight worked word problems, each "Question: ... Answer: ... The answer is N."."""
    LATEX_SHOTS = "latex_shots"
    """After four worked problems, each "Problem: ... Solution: ..." with a boxed answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """What a model is given."""

    style: PromptStyle = PromptStyle.CHAT
    """How the question is put."""
    instruction: str = ""
    """Added to the question on a line of its own; chat style only."""
    system: str = ""
    """The system's turn, where the template is not to use its own; chat style only."""

    def __post_init__(self) -> None:
        """Checks that what only a chat has is asked of a chat only."""
        for name in ("instruction", "system"):
            if getattr(self, name) and self.style is not PromptStyle.CHAT:
                raise ConfigError(
                    f"prompt.{name} is set, but prompt.style is {self.style.value}; only chats "
                    "have it"
                )


_HEADS = {
    PromptStyle.PLAIN: ("Question:", "Answer:"),
    PromptStyle.WORD_SHOTS: ("Question:", "Answer:"),
    PromptStyle.LATEX_SHOTS: ("Problem:", "Solution:"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text, and how it is to be tokenised."""

    text: str
    """What the model is given; without a space at its end."""
    special: bool
    """Whether special tokens in the text are meant as such."""


def render_prompt(problem: Problem, config: PromptConfig, template: ChatTemplate | None) -> Prompt:
    """Writes the prompt of a problem.

    Args:
      problem: the problem.
      config: the style.
      template: the model's chat template, needed by the chat style.

    Raises:
      ConfigError: a chat without a template.
    """
    if config.style is PromptStyle.CHAT:
        if template is None:
            raise ConfigError(
                "prompt.style is chat, but the model has no chat template (a base model?); set it "
                "to plain, word_shots or latex_shots"
            )
        content = f"{problem.question}\n{config.instruction}".strip()
        messages = [Message(role="user", content=content)]
        if config.system:
            messages.insert(0, Message(role="system", content=config.system))
        return Prompt(text=template.render(messages, add_generation_prompt=True), special=True)
    asks, answers = _HEADS[config.style]
    text = f"{example_text(config.style)}{asks} {problem.question}\n{answers}"
    return Prompt(text=text, special=False)


def example_text(style: PromptStyle) -> str:
    """The worked examples before a question, with what divides them from it; "" without any."""
    shots = {PromptStyle.WORD_SHOTS: WORD_PROBLEMS, PromptStyle.LATEX_SHOTS: LATEX_PROBLEMS}
    if style not in shots:
        return ""
    asks, answers = _HEADS[style]
    return "".join(
        f"{asks} {question}\n{answers} {solution}\n\n" for question, solution in shots[style]
    )


def stop_strings(style: PromptStyle) -> tuple[str, ...]:
    r"""What ends a response besides the end of sequence: the head of a next problem.

    >>> stop_strings(PromptStyle.WORD_SHOTS)
    ('\n\nQuestion:',)
    """
    return () if style is PromptStyle.CHAT else (f"\n\n{_HEADS[style][0]}",)
