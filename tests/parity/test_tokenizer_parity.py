"""Tokenizers rebuilt from GGUF and chat templates agree with transformers: recorded, and live."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.architecture.sources import ROOT
from tests.golden_files import FOLDER, check_golden
from tests.parity.tokenizer_record import CHOSEN, GOLDEN, KINDS, TEMPLATES, inputs, our_values


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return our_values(tmp_path_factory.mktemp("gguf"))


def recorded():
    return json.loads((FOLDER / GOLDEN).read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_rebuilt_tokenizer_gives_the_recorded_ids(ours, kind):
    for text, one, other in zip(CHOSEN, ours["ids"][kind], recorded()["ids"][kind], strict=True):
        assert one == other, ascii(text)
    assert ours["decoded"][kind] == recorded()["decoded"][kind]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_gives_the_recorded_text(ours, name):
    assert ours["chats"][name] == recorded()["chats"][name]


def test_the_record_tells_the_kinds_apart():
    ids = recorded()["ids"]
    assert set(ids) == set(KINDS)
    assert len({json.dumps(one) for one in ids.values()}) == len(KINDS)


@pytest.mark.parity
@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="transformers is not installed: pip install '.[parity]'",
)
def test_ids_and_chats_are_those_of_the_installed_transformers(ours):
    """In a process of its own: its warnings are not ours."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.parity.hf_tokenizers"],
        cwd=ROOT,
        input=json.dumps(inputs()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert ours == theirs
    check_golden(GOLDEN, json.dumps(theirs) + "\n")
