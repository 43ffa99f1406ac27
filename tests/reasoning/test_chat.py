"""Chat templates: rendering, where they are found, and what the sandbox refuses."""

import json

import pytest

from core_jax.errors import DataError
from reasoning_jax.text.chat import ChatTemplate, Message, load_chat_template

SOURCE = """{% for message in messages %}
    {% if loop.first and message['role'] == 'assistant' %}
        {{ raise_exception('the user speaks first') }}
    {% endif %}
{{ '<' + message.role + '>' + message['content'] + eos_token }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<assistant>' }}
{%- endif %}"""
TEMPLATE = ChatTemplate(source=SOURCE, eos_token="</s>")
QUESTION = Message(role="user", content="1 < 2 & \u00e9?")


def test_blocks_leave_no_lines_behind():
    text = TEMPLATE.render([QUESTION], add_generation_prompt=True)
    assert text == "<user>1 < 2 & \u00e9?</s>\n<assistant>"
    answered = [QUESTION, Message(role="assistant", content="yes")]
    text = TEMPLATE.render(answered, add_generation_prompt=False)
    assert text == "<user>1 < 2 & \u00e9?</s>\n<assistant>yes</s>\n"


def test_helpers_of_the_reference():
    source = "{{ {'a': '<'} | tojson }}{{ strftime_now('%Y') | length }}"
    assert ChatTemplate(source=source).render([], add_generation_prompt=False) == '{"a": "<"}4'


def test_loops_can_be_left():
    source = "{% for one in 'abc' %}{% if one == 'b' %}{% break %}{% endif %}{{ one }}{% endfor %}"
    assert ChatTemplate(source=source).render([], add_generation_prompt=False) == "a"


def test_json_as_the_reference_writes_it():
    source = "{{ {'b': '\u00e9', 'a': 1} | tojson(ensure_ascii=true, sort_keys=true, indent=1) }}"
    text = ChatTemplate(source=source).render([], add_generation_prompt=False)
    assert text == '{\n "a": 1,\n "b": "\\u00e9"\n}'


def test_there_are_no_tools_but_the_name_is_known():
    source = "{{ tools is not none }} {{ documents is defined }}"
    assert ChatTemplate(source=source).render([], add_generation_prompt=False) == "False True"


def test_a_template_can_refuse_a_conversation():
    with pytest.raises(DataError, match="cannot be rendered: the user speaks first"):
        TEMPLATE.render([Message(role="assistant", content="hi")], add_generation_prompt=False)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% include 'x' %}",
        "{{ open }}{{",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages.x.y }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_the_sandbox_holds(source):
    with pytest.raises(DataError, match="cannot be rendered"):
        ChatTemplate(source=source).render([QUESTION], add_generation_prompt=False)


def test_roles_are_checked():
    with pytest.raises(DataError, match="role is 'robot'; expected system, user, assistant"):
        Message(role="robot", content="")


def test_where_templates_are_found(tmp_path):
    assert load_chat_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one", "eos_token": {"content": "</s>"}}))
    assert load_chat_template(tmp_path) == ChatTemplate(source="one", eos_token="</s>")
    named = [{"name": "tool", "template": "x"}, {"name": "default", "template": "two"}]
    config.write_text(json.dumps({"chat_template": named, "bos_token": "<s>"}))
    assert load_chat_template(tmp_path) == ChatTemplate(source="two", bos_token="<s>")
    config.write_text(json.dumps({"chat_template": named[:1]}))
    with pytest.raises(DataError, match="has the chat templates tool, and none called 'default'"):
        load_chat_template(tmp_path)
    config.write_text(json.dumps({"chat_template": "one"}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<e>"}))
    assert load_chat_template(tmp_path) == ChatTemplate(source="one", eos_token="<e>")
    (tmp_path / "special_tokens_map.json").unlink()
    (tmp_path / "chat_template.jinja").write_text("three")
    assert load_chat_template(tmp_path) == ChatTemplate(source="three")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON in UTF-8"),
        (b'{"a": "\xff"}', "is not JSON in UTF-8"),
        (b"[]", "expected a JSON object"),
        (b'{"chat_template": [{"name": "x"}]}', "an entry without name and template"),
        (b'{"chat_template": [1]}', "an entry without name and template"),
        (b'{"chat_template": 3}', "chat_template is 3; expected text or a list"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_chat_template(tmp_path)
    assert str(tmp_path) in str(caught.value)
