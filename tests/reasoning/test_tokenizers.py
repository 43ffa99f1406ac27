"""Tokenizers of every form: round trips, special tokens, policies, errors."""

import json
import random

import gguf
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers

from core_jax.errors import ConfigError, DataError
from reasoning_jax.text.byte_tokenizer import ByteTokenizer
from reasoning_jax.text.load import load_chat, load_tokenizer
from reasoning_jax.text.sentencepiece_tokenizer import least_vocabulary, train_sentencepiece
from reasoning_jax.text.tokenizer import Tokenizer, TokenPolicy

CORPUS = [
    "The answer is 42, and 17 + 25 = 42.",
    "She sells 12 apples for 3 dollars each: 12 * 3 = 36.",
    "Wie viele sind es? Zwei und drei sind f\u00fcnf.",
    "A  text with   spaces,\n\nline breaks\tand tabs.",
] * 5
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "",
    " ",
    "Answer: 1234 and 5",
    "\n\nQuestion:",
    "na\u00efve \u4f60\u597d \U0001f600",
    "  a\t b ",
]


def trained_bpe():
    """A small byte-level BPE in SmolLM's style, as the reference package builds it."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    return inner


def merged_bpe():
    """One that cuts as GPT-2 does, so that its merges join digits and line breaks as well."""
    inner = trained_bpe()
    inner.model = models.BPE()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["12345", "In 12345 12345 years, we'll WE'LL say:\n\n\n  it's  (it's) !!\r\n"]
    inner.train_from_iterator(CORPUS + texts * 5, trainer)
    return inner


def write_folder(folder, *, bos=False, eos=False, **config):
    inner = trained_bpe()
    if bos or eos:
        inner.post_processor = processors.TemplateProcessing(
            single=("<|im_start|> " if bos else "") + "$A" + (" <|im_end|>" if eos else ""),
            special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)],
        )
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", **config}))
    return folder


def write_gguf(path, *, pre="smollm", model="gpt2", merges=True, inner=None, **changes):
    """Changes: "tokens" and "added_merge", to damage the file; other fields by their names."""
    fields = json.loads((inner or trained_bpe()).to_str())
    vocabulary = fields["model"]["vocab"]
    tokens = changes.pop("tokens", sorted(vocabulary, key=vocabulary.get))
    pairs = [" ".join(pair) for pair in fields["model"]["merges"]]
    pairs += [changes.pop("added_merge")] if "added_merge" in changes else []
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIALS else 1 for token in tokens])
    if merges:
        writer.add_token_merges(pairs)
    for name, value in changes.items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        add(f"tokenizer.ggml.{name}", value)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    writer.add_tensor("unused", np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "bytes": ByteTokenizer(),
        "json": load_tokenizer(write_folder(folder)),
        "gguf": load_tokenizer(write_gguf(folder / "model.gguf")),
        "sentencepiece": train_sentencepiece(CORPUS, folder / "t.model", vocab_size=307),
    }


KINDS = ["bytes", "json", "gguf", "sentencepiece"]


@pytest.mark.parametrize("kind", KINDS)
def test_text_survives_the_round_trip(every, kind):
    tokenizer = every[kind]
    assert isinstance(tokenizer, Tokenizer)
    generator = random.Random(3)
    alphabet = "ab 0123\n\t.,\u00e9\u4f60\U0001f600<|>"
    made_up = ["".join(generator.choices(alphabet, k=17)) for _ in range(50)]
    for text in TEXTS + CORPUS[:4] + made_up:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_inside_a_character_decodes_to_a_replacement(every, kind):
    tokenizer = every[kind]
    ids = tokenizer.encode("\U0001f600")
    assert len(ids) > 1  # the smile is no token of its own
    assert "\U0001f600" not in tokenizer.decode(ids[:-1])


@pytest.mark.parametrize("kind", ["json", "gguf"])
def test_special_tokens_in_text_are_letters_unless_meant(every, kind):
    tokenizer = every[kind]
    text = "<|im_start|>user"
    plain, special = tokenizer.encode(text), tokenizer.encode(text, special=True)
    assert 1 not in plain and tokenizer.decode(plain) == text
    assert special[0] == 1
    assert tokenizer.decode(special) == "user"
    assert tokenizer.decode(special, keep_special=True) == text


def test_bytes_have_special_tokens_too():
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("<bos>a<eos>", special=True) == [257, 97, 258]
    assert tokenizer.encode("<bos>") == list(b"<bos>")
    assert tokenizer.decode([257, 97, 258], keep_special=True) == "<bos>a<eos>"
    assert tokenizer.decode([97, 259, 262], keep_special=True) == "a"


def test_gguf_gives_the_ids_of_the_tokenizer_that_it_was_made_of(every):
    for text in TEXTS + CORPUS[:4]:
        assert every["gguf"].encode(text) == every["json"].encode(text)
        assert every["gguf"].encode(text, special=True) == every["json"].encode(text, special=True)


def test_digits_are_tokens_of_their_own(every):
    for kind in ("json", "gguf", "sentencepiece"):
        tokenizer = every[kind]
        assert len(tokenizer.encode("a12345")) >= 6
        assert tokenizer.encode("12345")[-3:] == tokenizer.encode("345")[-3:]


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["1", "2", "3", "4", "5"]),
        ("qwen2", ["1", "2", "3", "4", "5"]),
        ("llama-bpe", ["123", "45"]),
        ("gpt-2", ["12345"]),
        ("default", ["12345"]),
    ],
)
def test_a_ggufs_kind_says_how_digits_are_cut(tmp_path, pre, pieces):
    """With a vocabulary that would join them: SmolLM and Qwen cut each, Llama 3 after three."""
    inner = merged_bpe()
    assert inner.token_to_id("12345") is not None
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf", pre=pre, inner=inner))
    said = [tokenizer.decode([token_id]) for token_id in tokenizer.encode("12345")]
    joined = "".join(said)
    assert joined == "12345"
    bounds = [len("".join(pieces[:n])) for n in range(1, len(pieces))]
    seen = [len("".join(said[:n])) for n in range(1, len(said))]
    assert set(bounds) <= set(seen)
    if pre in ("gpt-2", "default"):
        assert said == ["12345"]


def test_a_beginning_is_added_where_the_post_processor_adds_one(tmp_path):
    folder = write_folder(tmp_path, bos=True)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.policy == TokenPolicy(add_bos=True, add_eos=True)
    assert tokenizer.bos_id == 1
    assert tokenizer.encode("a") == load_tokenizer(folder).encode("a")
    assert 1 not in tokenizer.encode("a")  # the policy's user adds it


def test_ends_are_the_tokenizers_and_the_generation_configs(tmp_path):
    folder = write_folder(tmp_path, pad_token="<|endoftext|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_ids == (2, 0)
    assert tokenizer.pad_id == 0


def test_gguf_ends_and_chat_template(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    tokenizer, chat = load_tokenizer(path), load_chat(path)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.policy.add_bos) == (1, (2, 0), False)
    assert (chat.bos_token, chat.eos_token) == ("<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("bos", [False, True])
def test_an_end_that_the_post_processor_adds_is_no_beginning(tmp_path, bos, eos):
    tokenizer = load_tokenizer(write_folder(tmp_path, bos=bos, eos=eos))
    assert tokenizer.policy == TokenPolicy(add_bos=bos, add_eos=True)
    assert tokenizer.bos_id == (1 if bos else None)


def test_special_tokens_are_looked_for_in_every_file(tmp_path):
    """Null is no name; tokenizer_config.json goes before special_tokens_map.json."""
    folder = write_folder(tmp_path, eos_token=None, bos_token=None)
    tokens = {"eos_token": {"content": "<|im_end|>"}, "bos_token": "<|im_start|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, (2,), 2)
    assert not tokenizer.policy.add_bos
    generation = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, (2, 0), 1)
    (folder / "special_tokens_map.json").unlink()
    (folder / "generation_config.json").write_text(json.dumps(generation | {"pad_token_id": -1}))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (0, (0,), 0)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_start|>"}))
    assert load_tokenizer(folder).eos_ids == (1, 0)


def test_ids_may_have_gaps(tmp_path):
    folder = write_folder(tmp_path)
    fields = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = fields["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = 5003
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    assert load_tokenizer(folder).vocab_size == 5004


@pytest.mark.parametrize(
    ("pre", "fields", "adds"),
    [
        ("smollm", {}, False),
        ("smollm", {"add_bos_token": True}, True),
        ("llama-bpe", {}, True),
        ("llama-bpe", {"add_bos_token": False}, False),
    ],
)
def test_gguf_says_whether_a_beginning_is_added(tmp_path, pre, fields, adds):
    """Llama 3's files leave it to their kind, whose readers add one."""
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf", pre=pre, **fields))
    assert tokenizer.policy.add_bos is adds


def test_gguf_names_the_end_of_a_turn(tmp_path):
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf", eot_token_id=7))
    assert tokenizer.eos_ids == (2, 7, 0)


def test_sentencepiece_reads_and_writes_its_control_pieces(every):
    tokenizer = every["sentencepiece"]
    text = "<s>a b\n\u4f60</s>"
    ids = tokenizer.encode(text, special=True)
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_ids[0])
    assert tokenizer.decode(ids, keep_special=True) == text
    assert tokenizer.decode(ids) == "a b\n\u4f60"
    assert tokenizer.bos_id not in tokenizer.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_past_the_vocabulary_say_nothing(every, kind):
    """A model may have more rows than its tokenizer has tokens, and can sample their ids."""
    tokenizer = every[kind]
    past = [*tokenizer.encode("a"), tokenizer.vocab_size, 10**6, *tokenizer.encode("b")]
    for keep_special in (False, True):
        assert tokenizer.decode(past, keep_special=keep_special) == "ab"


@pytest.mark.parametrize("kind", KINDS)
def test_any_unicode_survives_the_round_trip(every, kind):
    """Random code points of the whole range, surrogates (which are no text) left out."""
    tokenizer = every[kind]
    generator = random.Random(5)
    planes = [(0x20, 0x7F), (0, 0x800), (0x800, 0xD800), (0xE000, 0x110000)]
    for _ in range(60):
        points = (generator.randrange(*generator.choice(planes)) for _ in range(23))
        text = "".join(map(chr, points))
        if kind == "sentencepiece":  # this letter is how it writes spaces
            text = text.replace("\u2581", "")
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        for stop in range(len(ids)):
            said = tokenizer.decode(ids[:stop]).rstrip("\ufffd")
            assert text.startswith(said)


def test_fingerprints_change_with_policy_and_vocabulary(every, tmp_path):
    seen = {tokenizer.fingerprint for tokenizer in every.values()}
    assert len(seen) == 4
    quiet = TokenPolicy(add_bos=False, add_eos=False)
    folder = write_folder(tmp_path)
    assert load_tokenizer(folder).fingerprint == every["json"].fingerprint
    assert load_tokenizer(folder, policy=quiet).fingerprint != every["json"].fingerprint


def test_sentencepiece_training_is_deterministic(tmp_path):
    for name in ("a.model", "b.model"):
        train_sentencepiece(CORPUS, tmp_path / name, vocab_size=307)
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()


def test_errors(tmp_path):
    with pytest.raises(DataError, match="there is no tokenizer at"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "x.model").write_bytes(b"no model")
    with pytest.raises(DataError, match="is no SentencePiece model"):
        load_tokenizer(tmp_path / "x.model")
    with pytest.raises(DataError, match=r"tokenizer\.ggml\.pre is 'smolm'.*Did you mean 'smollm'"):
        load_tokenizer(write_gguf(tmp_path / "a.gguf", pre="smolm"))
    with pytest.raises(DataError, match=r"tokenizer\.ggml\.model is 'llama'"):
        load_tokenizer(write_gguf(tmp_path / "b.gguf", model="llama"))
    with pytest.raises(DataError, match=r"has no tokenizer\.ggml\.merges"):
        load_tokenizer(write_gguf(tmp_path / "c.gguf", merges=False))
    (tmp_path / "d.gguf").write_bytes(b"GGUX" + bytes(64))
    with pytest.raises(DataError, match="cannot be read as GGUF"):
        load_tokenizer(tmp_path / "d.gguf")
    with pytest.raises(ConfigError, match="model of 99 tokens cannot be trained"):
        train_sentencepiece(CORPUS, tmp_path / "e.model", vocab_size=99)
    tokens = [f"t{index}" for index in range(400)]
    for number, damage in enumerate(
        [{"added_merge": "a b c"}, {"added_merge": "zz qq"}, {"tokens": tokens[:-1] + tokens[:1]}]
    ):
        with pytest.raises(DataError, match="do not make a tokenizer"):
            load_tokenizer(write_gguf(tmp_path / f"{number}.gguf", **damage))
    with pytest.raises(DataError, match=r"the tokenizer's end is token \(2, 999, 0\), but its ids"):
        load_tokenizer(write_gguf(tmp_path / "f.gguf", eot_token_id=999))
    folder = write_folder(tmp_path, eos_token="</s>")
    with pytest.raises(
        DataError, match=r"eos_token is '</s>', which tokenizer\.json does not have"
    ):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DataError, match="names no end-of-sequence token"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match="expected a JSON object"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        load_tokenizer(folder)
    write_folder(tmp_path)
    with pytest.raises(DataError, match="policy adds a beginning-of-sequence token, but there"):
        load_tokenizer(folder, policy=TokenPolicy(add_bos=True, add_eos=True))


def test_the_least_vocabulary_is_a_token_per_character_and_piece(tmp_path):
    """One token fewer has no room for them; the pieces are read whole, spaces included."""
    texts = ["Question: 17+25=?\nAnswer: 42", "Question: 3-2=?\nAnswer: 1"]
    pieces = ("Question: ", "\nAnswer:")
    least = least_vocabulary(texts, pieces)
    assert least == 4 + 256 + len(pieces) + len(set(" 123457+-=?"))
    tokenizer = train_sentencepiece(texts, tmp_path / "t.model", vocab_size=least, pieces=pieces)
    assert tokenizer.vocab_size == least
    read = [tokenizer.decode([one]) for one in tokenizer.encode(texts[1])]
    assert read == ["Question: ", *"3-2=?", "\nAnswer:", " ", "1"]
    with pytest.raises(ConfigError, match=r"cannot be trained on this corpus"):
        train_sentencepiece(texts, tmp_path / "u.model", vocab_size=least - 1, pieces=pieces)
