"""TRL's own preference losses on the inputs of a record; `python -m tests.parity.trl_preference`.

Reads {"inputs": ..., "settings": ...} on the standard input and prints {"trl": release, "values":
{loss: [one number per example]}}. TRL's trainers compute losses in methods that need few fields of
them: the methods are called with a stand-in that has those, in float64, one example at a time since
they return batch means.

Dimension key: B examples (one at a time), L tokens (both responses padded to one length).
"""

import collections
import json
import sys
import types

import torch


def _accelerator():
    return types.SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
    )


def _trainer(**fields):
    """What TRL's loss methods read of a trainer, beside the fields of one loss."""
    return types.SimpleNamespace(
        model=types.SimpleNamespace(training=True),
        accelerator=_accelerator(),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **fields,
    )


def _padded(rows, lengths, width):
    """[B, L] log-probabilities, 0 beyond each length, and their mask."""
    where = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    values = torch.zeros(len(rows), width, dtype=torch.float64)
    table = torch.tensor(rows, dtype=torch.float64)
    values[:, : table.shape[1]] = table
    return torch.where(where, values, 0.0), where


def _token_batch(log_probs, where):
    """Model and batch of one prompt token and then the response, as TRL's trainers see them."""
    prompt = torch.zeros(len(where), 1, dtype=torch.bool)
    mask = torch.cat([prompt, where], dim=1).long()
    zeros = torch.zeros_like(log_probs)
    outputs = types.SimpleNamespace(
        log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=where
    )
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}
    return (lambda **_: outputs), inputs


def dpo_losses(policy, reference, where, settings, names, loss_weights=None):
    """Loss of TRL's DPOTrainer; the arrays hold chosen above rejected responses."""
    from trl import DPOTrainer

    trainer = _trainer(
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=names,
        loss_weights=loss_weights or [1.0] * len(names),
        beta=settings["beta"],
        label_smoothing=settings["label_noise"],
        use_weighting=False,
    )
    model, inputs = _token_batch(policy, where)
    chosen, rejected = reference.sum(1).chunk(2)
    inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    return float(DPOTrainer._compute_loss(trainer, model, inputs, False))


def cpo_losses(policy, where, settings, name, *, alpha=0.0, label_noise=0.0):
    """Loss of TRL's CPOTrainer, from logits over two classes that give the log-probabilities."""
    from trl.experimental.cpo import CPOTrainer

    trainer = _trainer(
        loss_type=name,
        alpha=0.0,
        beta=settings["cpo_beta"],
        simpo_gamma=settings["target_margin"],
        cpo_alpha=alpha,
        label_smoothing=label_noise,
        is_encoder_decoder=False,
        pad_token_id=0,
        get_batch_logps=CPOTrainer.get_batch_logps,
        concatenated_inputs=lambda *_, **__: batch,
        cpo_loss=lambda *args: CPOTrainer.cpo_loss(trainer, *args),
        concatenated_forward=lambda *args: CPOTrainer.concatenated_forward(trainer, *args),
    )
    labels = torch.where(where, 0, -100)
    labels = torch.cat([torch.full((len(where), 1), -100), labels], dim=1)
    batch = {
        "concatenated_input_ids": labels,
        "concatenated_attention_mask": labels,
        "concatenated_labels": labels,
    }
    other = torch.log(-torch.expm1(torch.where(where, policy, -1.0)))
    logits = torch.stack([torch.where(where, policy, -1.0), other], dim=-1)
    logits = torch.cat([logits, logits[:, -1:]], dim=1)  # the last one predicts nothing
    model = lambda *_, **__: types.SimpleNamespace(logits=logits)  # noqa: E731
    half = {"chosen_labels": labels[: len(labels) // 2]}
    return float(CPOTrainer.get_batch_loss_metrics(trainer, model, half)[0])


def kto_loss(policy, reference, where, settings, *, desirable, point):
    """Loss of TRL's KTOTrainer of one response; `point` is its KL estimate before the clamp."""
    from trl import KTOTrainer

    trainer = _trainer(
        loss_type="kto",
        calculate_KL=True,
        beta=settings["beta"],
        desirable_weight=settings["desirable_weight"],
        undesirable_weight=settings["undesirable_weight"],
        _compute_kl_logps=lambda *_: torch.tensor([point], dtype=torch.float64),
    )
    model, inputs = _token_batch(policy, where)
    inputs |= {
        "label": torch.tensor([desirable]),
        "ref_logps": reference.sum(1),
        "ref_KL_logps": torch.zeros(1, dtype=torch.float64),
    }
    return float(KTOTrainer._compute_loss(trainer, model, inputs, False))


def losses(record):
    """Every loss that TRL has, of each example; `rpo_batch` is one number for the whole batch."""
    inputs, settings = record["inputs"], record["settings"]
    width = max(len(inputs[side]["policy"][0]) for side in ("chosen", "rejected"))
    sides = [inputs["chosen"], inputs["rejected"]]
    policies, wheres = zip(*(_padded(s["policy"], s["lengths"], width) for s in sides), strict=True)
    references = [_padded(s["reference"], s["lengths"], width)[0] for s in sides]
    values = collections.defaultdict(list)
    rpo = {"names": ["sigmoid", "sft"], "loss_weights": [1.0, settings["nll_weight"]]}
    for row in range(len(policies[0])):
        policy, reference, where = (
            torch.stack([side[row] for side in array]) for array in (policies, references, wheres)
        )
        for name in ("sigmoid", "hinge", "robust", "ipo"):
            values[name].append(dpo_losses(policy, reference, where, settings, [name]))
        values["rpo"].append(dpo_losses(policy, reference, where, settings, **rpo))
        values["cpo"].append(
            cpo_losses(policy, where, settings, "sigmoid", alpha=settings["nll_weight"])
        )
        noise = settings["label_noise"]
        values["cpo_smoothed"].append(
            cpo_losses(policy, where, settings, "sigmoid", label_noise=noise)
        )
        values["simpo"].append(cpo_losses(policy, where, settings, "simpo"))
        for key, point in settings["reference_points"].items():
            for desirable, side in ((True, 0), (False, 1)):
                name = f"kto_{'desirable' if desirable else 'undesirable'}_{key}"
                one = (array[side : side + 1] for array in (policy, reference, where))
                values[name].append(kto_loss(*one, settings, desirable=desirable, point=point))
    whole = (torch.cat(list(array)) for array in (policies, references, wheres))
    values["rpo_batch"] = [dpo_losses(*whole, settings, **rpo)]
    return dict(values)


if __name__ == "__main__":
    import trl

    release = ".".join(trl.__version__.split(".")[:2])
    print(json.dumps({"trl": release, "values": losses(json.load(sys.stdin))}))
