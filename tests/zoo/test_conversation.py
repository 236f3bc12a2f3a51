"""`zoo.decode.Conversation` and `python -m zoo chat`: turns, streams, a full context, an answer that is stopped."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest

import zoo
from zoo.__main__ import main
from zoo.decode import Conversation
from zoo.inputs.text import TextInputs
from zoo.run import Run

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
SYMBOLS = "\n :?abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def run():
    inputs = TextInputs(length=64, tokenizer="char", vocabulary=SYMBOLS)
    inputs = dataclasses.replace(inputs, chat_template=TEMPLATE)
    model = zoo.create_model("gpt2", vocab_size=len(SYMBOLS), hidden_size=32, num_layers=1, num_heads=2, max_length=128)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))
    return Run(model, jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 1 else leaf, variables), inputs)


def test_an_answer_is_what_the_model_generates_after_the_template(run):
    conversation = Conversation(run, "be kind", length=9)
    first = "".join(conversation.ask("hello"))
    assert first == zoo.generate(run, "s:be kind\nu:hello\na:", 9, temperature=0)
    second = "".join(conversation.ask("and"))
    assert second == zoo.generate(run, f"s:be kind\nu:hello\na:{first}\nu:and\na:", 9, temperature=0)
    assert [message["role"] for message in conversation.messages] == ["system", *["user", "assistant"] * 2]
    conversation.reset()
    assert "".join(conversation.ask("hello")) == first


def test_a_full_context_drops_the_oldest_turns_and_keeps_the_system(run):
    conversation, dropped = Conversation(run, "be kind", length=9, context=64), []
    for turn in range(5):
        text = "abcde"[turn] * 8
        dropped.append(conversation.make_room(text))
        assert "".join(conversation.ask(text))
    assert dropped[0] == 0
    assert dropped[-1] == 2
    assert conversation.messages[0]["content"] == "be kind"
    assert conversation.messages[-2]["content"] == "e" * 8
    with pytest.raises(zoo.ZooError, match="leaves no room in the context of 64"):
        conversation.ask("a" * 70)
    assert conversation.messages[-2]["content"] == "e" * 8  # and no message more


def test_an_answer_that_is_left_stays_as_far_as_it_came(run):
    conversation = Conversation(run, length=50)
    answer = conversation.ask("hello")
    piece = next(answer)
    answer.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": piece}
    assert conversation.reason == "cancelled"
    assert not conversation.slots.busy


def test_a_model_without_a_template_does_not_talk(run):
    with pytest.raises(zoo.ZooError, match="no chat template"):
        Conversation(run._replace(inputs=dataclasses.replace(run.inputs, chat_template="")))


def test_the_command_answers_saves_and_goes_on_after_mistakes(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "load", lambda folder: run)
    saved = tmp_path / "chat.jsonl"
    saved.write_text('{"messages": []}\n')
    lines = [
        "hello",
        "",
        "/nothing",
        "UPPER",
        f"/save {saved}",
        "/save /no/such/folder/file",
        "/reset",
        "hello",
        "/quit",
        "x",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["chat", "some-run", "--length", "8", "--context", "100"]) == 0
    out, err = capsys.readouterr()
    answer = zoo.generate(run, "u:hello\na:", 8, temperature=0)
    assert out.count(answer) == 2
    assert "the answer is cut at 8 tokens" in out
    assert err.startswith("error: unknown command '/nothing'; ")
    assert len(err.splitlines()) == 3  # the unknown command, letters that the vocabulary lacks, the folder
    kept = [json.loads(line) for line in saved.read_text().splitlines()]
    assert kept == [
        {"messages": []},
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": answer}]},
    ]


def test_ctrl_c_stops_an_answer_and_not_the_chat(run, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "load", lambda folder: run)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nand\n"))
    step, steps = zoo.decode.Slots.step, []

    def pressed(self):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(zoo.decode.Slots, "step", pressed)
    assert main(["chat", "some-run", "--length", "8"]) == 0
    out = capsys.readouterr().out
    assert " (stopped)\n" in out
    assert len(steps) > 8  # the second answer is whole
