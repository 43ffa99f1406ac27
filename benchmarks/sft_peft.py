"""The LoRA step of `transformers` with `peft`, in turns: a worker of `benchmarks.sft_step`.

python -m benchmarks.sft_peft CASE_FOLDER
"""

import json
import pathlib
import sys

import numpy as np
import peft
import torch
import transformers

from benchmarks.turns import Worker


def main(folder: pathlib.Path) -> None:
    """Trains for as many steps as the case says."""
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=getattr(torch, case["dtype"])
    )
    model = peft.PeftModel.from_pretrained(model, str(folder / "adapter"), is_trainable=True)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=case["learning_rate"], weight_decay=0.0)
    ids = torch.tensor(np.load(folder / "tokens.npy"), dtype=torch.long)

    def take_step() -> float:
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        return float(loss)

    Worker().run(take_step, case["num_steps"])


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
