"""Loss and adapter gradients of TRL's DPOTrainer: `python -m tests.parity.trl_dpo`.

Reads {"folder": a model's folder with an adapter's below it, "rank", "alpha", "beta", "pairs":
[{"prompt", "chosen", "rejected": token ids}]} on the standard input. The trainer is TRL's own, over
words that stand for token ids, so that its own data preparation runs. Prints {"trl": release,
"loss", "gradients": {PEFT's name: nested list}} as the last line.
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


def word_tokenizer(size):
    """The word "t7." is token 7; none begins another, as special tokens are looked for first."""
    words = tokenizers.models.WordLevel({f"t{i}.": i for i in range(size)}, unk_token="t0.")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    names = {"unk_token": "t0.", "pad_token": "t0.", "eos_token": "t2."}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def text(ids, end=""):
    return " ".join(f"t{i}." for i in ids) + end


def dpo_trainer(step, output):
    model = transformers.AutoModelForCausalLM.from_pretrained(step["folder"], dtype=torch.float32)
    rows = [
        {
            "prompt": text(pair["prompt"], " "),
            "chosen": text(pair["chosen"]),
            "rejected": text(pair["rejected"]),
        }
        for pair in step["pairs"]
    ]
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return trl.DPOTrainer(
        model=model,
        args=trl.DPOConfig(
            output_dir=output,
            beta=step["beta"],
            per_device_train_batch_size=len(rows),
            bf16=False,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=word_tokenizer(model.config.vocab_size),
        peft_config=peft.LoraConfig(
            r=step["rank"],
            lora_alpha=step["alpha"],
            target_modules=names,
            task_type="CAUSAL_LM",
        ),
    )


def loss_and_gradients(step):
    with tempfile.TemporaryDirectory() as output:
        trainer = dpo_trainer(step, output)
    adapter = pathlib.Path(step["folder"]) / "adapter" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(adapter)
    left = peft.set_peft_model_state_dict(trainer.model, tensors)
    assert not left.unexpected_keys, left.unexpected_keys
    trainer.model.train()
    prepared = trainer.train_dataset
    for pair, row in zip(step["pairs"], prepared, strict=True):
        for side in ("prompt", "chosen", "rejected"):
            assert row[f"{side}_ids"] == pair[side], (side, row[f"{side}_ids"], pair[side])
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(list(prepared)))
    loss.backward()
    gradients = {
        name.replace(".default", ""): parameter.grad.tolist()
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad
    }
    return {"loss": float(loss), "gradients": gradients}


if __name__ == "__main__":
    release = ".".join(trl.__version__.split(".")[:2])
    print(json.dumps({"trl": release} | loss_and_gradients(json.load(sys.stdin))))
