"""TRL's DPOTrainer with PEFT, step by step in turns: a worker of `benchmarks.cdpo_step`.

    python -m benchmarks.cdpo_trl CASE_FOLDER MODE

The trainer runs its own loop (`train`), its own data preparation and its defaults, gradient
checkpointing among them; a callback waits for the turn before each step and reports after it. MODE
`as_it_comes` runs the reference in every step, `precomputed` beforehand, and `uncheckpointed` is
the latter with all activations kept: TRL's fastest. Token ids travel as words.
"""

import json
import pathlib
import sys
import tempfile

import datasets
import peft
import safetensors.torch
import tokenizers
import torch
import transformers
import trl

from benchmarks.turns import Worker

_MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_PAD = 0


def word(token: int) -> str:
    """A token as a word; none begins another, as special tokens are looked for first."""
    return f"t{token}."


def word_tokenizer(vocab_size: int, eos: int) -> transformers.PreTrainedTokenizerFast:
    """Words back to tokens."""
    words = {word(token): token for token in range(vocab_size)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=word(_PAD)))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=word(_PAD),
        pad_token=word(_PAD),
        eos_token=word(eos),
    )


class Turns(transformers.TrainerCallback):
    """One step of the trainer's loop per turn."""

    def __init__(self, worker: Worker):
        self._worker = worker

    def on_step_begin(self, args: object, state: object, control: object, **_: object) -> None:
        """Waits for the turn."""
        self._worker.wait()

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        """Tells that the step is done."""
        self._worker.report(None)


def main(folder: pathlib.Path, mode: str) -> None:
    """Trains for as many steps as the case says."""
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=getattr(torch, case["dtype"])
    )
    rows = [
        {
            "prompt": " ".join(map(word, pair["prompt"])) + " ",
            "chosen": " ".join(map(word, pair["chosen"])),
            "rejected": " ".join(map(word, pair["rejected"])),
        }
        for pair in case["pairs"]
    ]
    with tempfile.TemporaryDirectory() as output:
        settings = trl.DPOConfig(
            output_dir=output,
            beta=case["beta"],
            learning_rate=case["learning_rate"],
            lr_scheduler_type="constant",
            max_grad_norm=case["clip_norm"],
            per_device_train_batch_size=len(rows),
            max_steps=case["num_steps"],
            precompute_ref_log_probs=mode != "as_it_comes",
            bf16=False,  # or TRL computes in bfloat16 whatever the weights are
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            **({"gradient_checkpointing": False} if mode == "uncheckpointed" else {}),
        )
        worker = Worker()
        trainer = trl.DPOTrainer(
            model=model,
            args=settings,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=word_tokenizer(model.config.vocab_size, case["eos"]),
            peft_config=peft.LoraConfig(
                r=case["rank"],
                lora_alpha=case["alpha"],
                target_modules=_MAPS,
                task_type="CAUSAL_LM",
            ),
            callbacks=[Turns(worker)],
        )
        _check_tokens(trainer.train_dataset, case["pairs"])
        start = safetensors.torch.load_file(folder / "adapter" / "adapter_model.safetensors")
        peft.set_peft_model_state_dict(trainer.model, start)
        trainer.train()
    worker.finish()


def _check_tokens(prepared: datasets.Dataset, pairs: list[dict]) -> None:
    """What TRL made of the words is what they were made of."""
    for row, pair in zip(prepared, pairs, strict=True):
        for side in ("prompt", "chosen", "rejected"):
            assert row[f"{side}_ids"] == pair[side], f"TRL reads other tokens of the {side}"


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
