"""Logits of transformers and PEFT, for a process of their own: `-m tests.parity.hf_transformers`.

Reads a list of steps on the standard input and prints the logits of each as a list on the last line
of the standard output. A step loads a model ("load": a folder) or makes one ("make": a config, with
random weights), may put an adapter on it ("adapter": a folder, or "new_adapter": LoRA settings),
runs "tokens", and may save the model ("save") or the adapter ("save_adapter").
"""

import json
import sys

import torch
import transformers


def _model(step):
    if "load" in step:
        return transformers.AutoModelForCausalLM.from_pretrained(step["load"], dtype=torch.float32)
    fields = dict(step["make"])
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    config.initializer_range = 0.3
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms start at 0 and 1
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def _logits(step):
    model = _model(step).eval()
    if "save" in step:
        model.save_pretrained(step["save"], max_shard_size=step["max_shard_size"])
    if "adapter" in step or "new_adapter" in step:
        import peft

        if "adapter" in step:
            model = peft.PeftModel.from_pretrained(model, step["adapter"])
        else:
            model = peft.get_peft_model(model, peft.LoraConfig(**step["new_adapter"]))
            torch.manual_seed(11)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:  # starts at 0
                        parameter += 0.3 * torch.randn_like(parameter)
        model = model.eval()
    if "save_adapter" in step:
        model.save_pretrained(step["save_adapter"])
    if step.get("merge"):
        model = model.merge_and_unload()
    with torch.no_grad():
        return model(torch.tensor(step["tokens"])).logits.tolist()


if __name__ == "__main__":
    print(json.dumps([_logits(step) for step in json.load(sys.stdin)]))
