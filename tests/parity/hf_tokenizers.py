"""Token ids and chats of transformers, for a process of their own: `-m tests.parity.hf_tokenizers`.

Reads `tokenizer_record.inputs()` as JSON on the standard input, and prints the same table as
`tokenizer_record.our_values` on the last line of the standard output. Each kind is built by the
class or converter that transformers has for it, and not by rules of ours.
"""

import json
import sys

import tokenizers
import transformers
from transformers.convert_slow_tokenizer import TikTokenConverter


def _llama(vocab, merges):
    """Llama 3: the converter that made its tokenizer.json, given merges instead of a file."""
    converter = TikTokenConverter(vocab_file=None)
    model = tokenizers.models.BPE(vocab, merges, ignore_merges=True)
    converter.tokenizer = lambda: tokenizers.Tokenizer(model)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=converter.converted())


def _smollm(vocab, merges):
    """SmolLM: what its tokenizer.json says."""
    fields = {
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
            ],
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "added_tokens": [],
        "version": "1.0",
    }
    fields["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = True
    fields["decoder"]["use_regex"] = True
    inner = tokenizers.Tokenizer.from_str(json.dumps(fields))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner)


_BUILDERS = {
    "smollm": _smollm,
    "gpt-2": lambda vocab, merges: transformers.GPT2Tokenizer(vocab=vocab, merges=merges),
    "llama-bpe": _llama,
    "qwen2": lambda vocab, merges: transformers.Qwen2Tokenizer(vocab=vocab, merges=merges),
}


def _values(given):
    values = {"ids": {}, "decoded": {}, "chats": {}}
    merges = [tuple(pair) for pair in given["merges"]]
    for kind in given["kinds"]:
        tokenizer = _BUILDERS[kind](given["vocab"], merges)
        tokenizer.add_special_tokens({"additional_special_tokens": given["specials"]})
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in given["texts"]]
        values["ids"][kind] = ids
        values["decoded"][kind] = [
            [
                tokenizer.decode(one, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
                for skip in (False, True)
            ]
            for one in ids
        ]
    tokenizer = _BUILDERS["gpt-2"](given["vocab"], merges)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    for name, source in given["templates"].items():
        values["chats"][name] = [
            tokenizer.apply_chat_template(
                given["chat"], chat_template=source, tokenize=False, add_generation_prompt=opened
            )
            for opened in (False, True)
        ]
    return values


if __name__ == "__main__":
    print(json.dumps(_values(json.load(sys.stdin))))
