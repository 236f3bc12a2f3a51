"""Chat templates: rendered as their makers meant, in a sandbox, within bounds."""

import numpy as np
import pytest

from zoo import ZooError
from zoo.inputs import inputs_from_json
from zoo.inputs.chat import render
from zoo.inputs.text import TextInputs

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [{"role": "user", "content": "Hi {{ 1 + 1 }}"}]


def test_a_conversation_up_to_where_the_answer_begins():
    assert render(CHATML, TALK, True) == "<|im_start|>user\nHi {{ 1 + 1 }}<|im_end|>\n<|im_start|>assistant\n"
    assert not render(CHATML, TALK, False).endswith("assistant\n")


def test_what_templates_of_language_models_use():
    template = (
        "{{ bos_token }}\n{%- set found = namespace(n=0) %}\n{% for m in messages %}\n    {% generation %}"
        "{{ m | tojson }}{% endgeneration %}{% set found.n = found.n + 1 %}{% if found.n > 0 %}{% break %}{% endif %}"
        "{% endfor %}{{ eos_token }}"
    )
    assert render(template, TALK, True, "<s>", "</s>") == '<s>{"role": "user", "content": "Hi {{ 1 + 1 }}"}</s>'


def test_the_tokens_of_a_conversation():
    inputs = TextInputs("byte", "", 9, chat_template=CHATML)
    np.testing.assert_array_equal(inputs.chat(TALK), inputs.encode(render(CHATML, TALK, True)))
    assert inputs_from_json(inputs.to_json()) == inputs
    with pytest.raises(ZooError, match="no chat template"):
        TextInputs("byte", "", 9).chat(TALK)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('touch x') }}", "unsafe"),
        ("{{ 'a' * 10**9 }}", "not allowed"),
        ("{{ 'a' * 1000000000 }}", "not allowed"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% for i in range(90000) %}{{ 'a' * 1000 }}{% endfor %}", "characters"),
        ("{{ raise_exception('roles must alternate') }}", "refuses the messages: roles must alternate"),
        ("{% include 'x' %}", "cannot be used"),
        ("{% if %}", "cannot be used"),
        ("{{ nothing.at.all }}", "undefined"),
    ],
)
def test_a_template_gets_no_more_than_it_may_have(template, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZooError, match=message) as caught:
        render(template, TALK, True)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("messages", [["hi"], [{"content": "x"}], [{"role": 1, "content": "x"}]])
def test_messages_of_another_form(messages):
    with pytest.raises(ZooError, match="a message must be"):
        render(CHATML, messages, True)
