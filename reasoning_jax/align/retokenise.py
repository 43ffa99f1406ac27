"""Trajectories as they are trained on: put as the trained model will be asked, and ended.

A base model is sampled from behind worked examples, which the models that are trained do not see
(arXiv 2411.19943 and its code: eight or four examples when sampling, none when training). Prompt and
response are then tokenised again, together. Where a stop string ended a response, the end of
sequence stands in its place, so that it is learnt.

Dimension key: none.
"""

import dataclasses
from collections.abc import Mapping

from core_jax.errors import DataError
from reasoning_jax.data.problems import Problem
from reasoning_jax.data.prompts import PromptConfig, PromptStyle, render_prompt
from reasoning_jax.data.trajectories import Trajectory
from reasoning_jax.text.chat import ChatTemplate
from reasoning_jax.text.joint import encode_pair
from reasoning_jax.text.tokenizer import Tokenizer


def ended(trajectory: Trajectory, tokenizer: Tokenizer) -> Trajectory:
    """The trajectory with an end of sequence, unless it was cut off or has one.

    Raises:
      DataError: its tokens are of another tokenizer.
    """
    _check_tokenizer(trajectory, tokenizer)
    eos_ids = tokenizer.eos_ids
    if trajectory.finish != "stop" or not eos_ids or trajectory.token_ids[-1] in eos_ids:
        return trajectory
    return dataclasses.replace(trajectory, token_ids=(*trajectory.token_ids, eos_ids[0]))


def put_anew(
    trajectory: Trajectory,
    *,
    problems: Mapping[str, Problem],
    prompt: PromptConfig,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
) -> Trajectory:
    """The trajectory behind another prompt.

    Args:
      trajectory: a solution.
      problems: by id; the trajectory's is among them.
      prompt: how it is to be put.
      tokenizer: of the model.
      template: its chat template, needed by the chat style.

    Returns:
      The same response, tokenised together with its new prompt, ended as by `ended`.

    Raises:
      DataError: a problem that is not there, a response without a token, or another tokenizer.
    """
    _check_tokenizer(trajectory, tokenizer)
    if trajectory.problem_id not in problems:
        raise DataError(
            f"trajectory {trajectory.key} solves a problem that is not among the "
            f"{len(problems)} given; give the problems that it was sampled for"
        )
    rendered = render_prompt(problems[trajectory.problem_id], prompt, template)
    is_chat = prompt.style is PromptStyle.CHAT
    # After "Answer:" a model goes on with a space; a chat's turn begins with the text itself.
    response = trajectory.response.strip()
    joint = encode_pair(
        tokenizer,
        rendered.text,
        response if is_chat else f" {response}",
        special_prompt=rendered.special,
        add_eos=False,
    )
    anew = dataclasses.replace(
        trajectory,
        prompt=rendered.text,
        response=response if is_chat else f" {response}",
        token_ids=tuple(joint.token_ids),
        response_start=joint.response_start,
    )
    return ended(anew, tokenizer)


def _check_tokenizer(trajectory: Trajectory, tokenizer: Tokenizer) -> None:
    """Raises unless the ids are the tokenizer's."""
    if trajectory.tokenizer != tokenizer.fingerprint:
        raise DataError(
            f"the tokens of {trajectory.key} are of tokenizer '{trajectory.tokenizer}', the "
            f"model's is '{tokenizer.fingerprint}'; use the model that sampled, or import the text"
        )
