"""What the preference losses are compared with TRL on, and what ours make of it.

Dimension key: B examples, T tokens.
"""

import jax.numpy as jnp
import numpy as np

from core_jax import preference, preference_groups, preference_likelihood, preference_pairs

GOLDEN = "preference_trl.json"

SETTINGS = {
    "beta": 0.3,
    "cpo_beta": 1.7,
    "label_noise": 0.15,
    "nll_weight": 0.7,
    "target_margin": 0.9,
    "desirable_weight": 1.3,
    "undesirable_weight": 0.8,
    "reference_points": {"above": 0.4, "below": -0.6},
}


def made_up_inputs():
    """Log-probabilities by arithmetic, to three digits, of 5 pairs of at most 7 and 11 tokens."""

    def table(width, step):
        places = np.arange(5 * width) * step % 97
        return (-0.05 - 0.03 * places).round(3).reshape(5, width).tolist()

    return {
        "chosen": {
            "policy": table(7, 41),
            "reference": table(7, 29),
            "lengths": [7, 1, 4, 6, 3],
        },
        "rejected": {
            "policy": table(11, 37),
            "reference": table(11, 53),
            "lengths": [5, 11, 1, 8, 4],
        },
    }


def _arrays(side):
    lengths_B1 = np.asarray(side["lengths"])[:, None]
    policy = jnp.asarray(side["policy"], jnp.float32)
    where_BT = jnp.asarray(np.arange(policy.shape[1]) < lengths_B1)
    reference = jnp.asarray(side["reference"], jnp.float32)
    return policy, preference.log_ratios(policy, reference, where=where_BT), where_BT


def our_values(inputs, settings):
    """The losses of `tests.parity.trl_preference.losses`, under TRL's names, by our functions."""
    chosen_policy, chosen, chosen_where = _arrays(inputs["chosen"])
    rejected_policy, rejected, rejected_where = _arrays(inputs["rejected"])
    where, beta, noise = (chosen_where, rejected_where), settings["beta"], settings["label_noise"]
    ratios, policies = (chosen, rejected), (chosen_policy, rejected_policy)
    smooth = preference_pairs.conservative_dpo
    alpha, cpo_beta = settings["nll_weight"], settings["cpo_beta"]
    margin = settings["target_margin"]
    rpo_of = preference_likelihood.rpo
    values = {
        "sigmoid": preference_pairs.dpo(*ratios, where=where, beta=beta),
        "hinge": preference_pairs.hinge(*ratios, where=where, beta=beta),
        "robust": preference_pairs.robust_dpo(*ratios, where=where, beta=beta, label_noise=noise),
        "ipo": preference_pairs.ipo_token_mean(*ratios, where=where, beta=beta),
        "rpo": rpo_of(*ratios, chosen_policy, where=where, beta=beta, nll_weight=alpha),
        "cpo": preference_likelihood.cpo(*policies, where=where, beta=cpo_beta, nll_weight=alpha),
        "cpo_smoothed": smooth(*policies, where=where, beta=cpo_beta, label_noise=noise),
        "simpo": preference_likelihood.simpo(
            *policies, where=where, beta=cpo_beta, target_margin=margin
        ),
    }
    # TRL's batch: the DPO terms' mean, and the NLL over all tokens, not over the examples' means.
    nll_B = preference_likelihood.mean_nll(chosen_policy, where=chosen_where)
    lengths_B = jnp.sum(chosen_where, axis=-1)
    nll = jnp.sum(nll_B * lengths_B) / jnp.sum(lengths_B)
    values["rpo_batch"] = (jnp.mean(values["sigmoid"]) + alpha * nll)[None]
    for key, point in settings["reference_points"].items():
        for judged, side in (("desirable", 0), ("undesirable", 1)):
            values[f"kto_{judged}_{key}"] = preference_groups.kto(
                ratios[side],
                jnp.full(len(lengths_B), judged == "desirable"),
                where=where[side],
                reference_point=jnp.asarray(point),
                beta=beta,
                desirable_weight=settings["desirable_weight"],
                undesirable_weight=settings["undesirable_weight"],
            )
    return values
