"""What is tokenised and rendered for the comparison with transformers, and what ours make of it."""

import json

from reasoning_jax.text.chat import ChatTemplate, Message
from reasoning_jax.text.load import load_tokenizer
from tests.reasoning.test_tokenizers import SPECIALS, TEXTS, merged_bpe, write_gguf

GOLDEN = "hf_tokenizers.json"
KINDS = ("smollm", "gpt-2", "llama-bpe", "qwen2")
CHOSEN = [
    *TEXTS,
    "In 12345 years, we'll WE'LL (it's) say:\n\n\n  it's  !!\r\n\r\n \n",
    "1 22 333 4444 55555 x1y22 \u00b2\u00bd \u0661\u0662\u0663\u0664",
    "e\u0301 = \u00e9, \ufb01 \u212b 'S 'Ll don't",
    "\tif a:\n\t\treturn  b   # 3.14, -2e10\u00a0\u3000x",
    "$\\frac{12}{345}$ \\boxed{42}.",
    "<|im_start|>user\n1 + 1<|im_end|>\n<|im_start|>assistant\n",
]
CHAT = [
    {"role": "system", "content": "Be <brief> & \u00e9xact."},
    {"role": "user", "content": "6 * 7?"},
    {"role": "assistant", "content": "42"},
    {"role": "user", "content": 'And "7 * 8"?\n'},
]
TEMPLATES = {
    "turns": """{% for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<system>none' + eos_token }}
    {% endif %}
{{ '<' + message['role'] + '>' + message['content'] | trim + eos_token }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<assistant>' }}
{% endif %}""",
    "json": """{{- bos_token }}{% for message in messages %}
  {% if message.tool_calls is defined or tools %}
    {{- raise_exception('no tools here') }}
  {% endif %}
  {% if loop.index > 3 %}{% break %}{% endif %}
{{ message | tojson }}
{%- endfor %}
{{ messages | tojson(indent=2) }}""",
    "namespace": """{%- set found = namespace(last='') %}
{%- for message in messages[1:] if message.role == 'user' %}
    {%- set found.last = message.content %}
{%- endfor %}
{{ found.last }}{{ messages | length }}{{ documents is defined and documents }}""",
}


def inputs():
    """What the reference is given. One vocabulary, always trained to the same, for all kinds."""
    model = json.loads(merged_bpe().to_str())["model"]
    return {
        "vocab": model["vocab"],
        "merges": model["merges"],
        "kinds": KINDS,
        "specials": SPECIALS,
        "texts": CHOSEN,
        "chat": CHAT,
        "templates": TEMPLATES,
    }


def our_values(folder):
    """Token ids and texts by kind, and rendered chats by template and opening."""
    values = {"ids": {}, "decoded": {}, "chats": {}}
    for kind in KINDS:
        path = write_gguf(folder / f"{kind}.gguf", pre=kind, inner=merged_bpe())
        tokenizer = load_tokenizer(path)
        ids = [tokenizer.encode(text, special=True) for text in CHOSEN]
        values["ids"][kind] = ids
        values["decoded"][kind] = [
            [tokenizer.decode(one, keep_special=True), tokenizer.decode(one)] for one in ids
        ]
    for name, source in TEMPLATES.items():
        template = ChatTemplate(source=source, bos_token="<s>", eos_token="</s>")
        messages = [Message(**one) for one in CHAT]
        values["chats"][name] = [
            template.render(messages, add_generation_prompt=opened) for opened in (False, True)
        ]
    return values
