"""Dialogues: answers are found exactly, packed as if alone, learned alone; damaged lines are named."""

import dataclasses
import io
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
import zoo
from runs import assert_resumes, evaluated, loss_of
from train.__main__ import main
from train.data.dialogues import DialogueData, first_fit
from train.recipes import load_recipe
from train.sharding import make_layout
from train.tasks.dialogues import Dialogues
from zoo.__main__ import main as command
from zoo.inputs.dialogue import CHATML, encode_dialogue, find_answers, with_template
from zoo.inputs.text import TextInputs, learn

CHATS = pathlib.Path(__file__).with_name("chats.jsonl")
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
LLAMA2 = (  # strips what it is given
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content | trim }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}"
    "\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
LAST_ONLY = "{% for m in messages %}{{ m.content }}{% endfor %}{{ '' if add_generation_prompt else eos_token }}"


def talk(*turns, system=None):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def chats():
    return [json.loads(line)["messages"] for line in CHATS.read_text().splitlines()]


@pytest.fixture(scope="module")
def tokenizer():
    """The JSON of a byte-level BPE with the special tokens of the templates."""
    from tokenizers import Tokenizer

    texts = [message["content"] for messages in chats() for message in messages]
    library = Tokenizer.from_str(learn("bpe", texts, 300, 8).vocabulary)
    library.add_special_tokens(SPECIAL)
    return library.to_str()


@pytest.fixture(scope="module")
def inputs(tokenizer):
    def make(template=CHATML):
        end = "<|im_end|>" if "im_end" in template else "</s>"
        return TextInputs("bpe", tokenizer, 64, chat_template=template, begin_token="<s>", end_token=end)

    return make


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A tiny Llama in a Hugging Face folder, with its tokenizer and chat template."""
    path = tmp_path_factory.mktemp("llama") / "chat"
    fields = {"vocab_size": 304, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_size": 64}
    model = zoo.create_model("smollm2_135m", **fields, max_length=128)
    zoo.save_pretrained(model, jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32)), path)
    (path / "tokenizer.json").write_text(tokenizer)
    about = {"chat_template": CHATML, "bos_token": "<s>", "eos_token": "<|im_end|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(about))
    return path


def written(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps({'messages': line})}\n" for line in lines))
    return path


def load(path, inputs, **settings):
    return DialogueData(path=str(path), **{"validation_fraction": 0.0, "context": 64, **settings}).load((64,), inputs)


# Answers.


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (CHATML, ["  200 cm.\n<|im_end|>", "Ja, 5 m. <|im_end|>"]),
        (LLAMA2, [" 200 cm. </s>", " Ja, 5 m. </s>"]),
        (GENERATION, ["200 cm.<|im_end|>", "Ja, 5 m.<|im_end|>"]),
        (PLAIN, ["   200 cm.\n\n", " Ja, 5 m. \n"]),  # the line's end is all that ends a turn
    ],
    ids=["chatml", "llama2", "generation", "plain"],
)
def test_answers_are_what_the_assistant_writes_and_the_end_of_its_turn(inputs, template, answers):
    found = inputs(template)
    messages = talk("How many cm are 2 m? ", "  200 cm.\n", "200 cm.", "Ja, 5 m. ", "and more")
    tokens, mask = encode_dialogue(found, messages)
    runs = np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(mask)) + 1)
    assert [found.decode(tokens[run]) for run in runs if mask[run[0]]] == answers
    assert mask[-1]  # what follows the last answer is left out
    first = int(np.argmax(mask))
    np.testing.assert_array_equal(tokens[:first], found.chat(messages[:1]))  # the prompt that users give


def test_a_marked_answer_is_found_in_another_place_than_by_prefixes(inputs):
    marked, plain = find_answers(inputs(GENERATION), talk("a", " b ")), find_answers(inputs(CHATML), talk("a", " b "))
    assert [marked.text[slice(*span)] for span in marked.spans] == ["b<|im_end|>"]
    assert [plain.text[slice(*span)] for span in plain.spans] == [" b <|im_end|>"]


def test_no_token_crosses_into_an_answer(inputs):
    found = inputs("{% for m in messages %}{{ m.content }}{% endfor %}")
    whole = found.encode_rendered("How many")
    assert len(whole) < len(found.encode_rendered("How m")) + len(found.encode_rendered("any"))
    tokens, mask = encode_dialogue(found, talk("How m", "any"))
    assert (found.decode(tokens[mask]), found.decode(tokens)) == ("any", "How many")
    np.testing.assert_array_equal(tokens[~mask], found.chat(talk("How m")))


def test_an_answer_of_weight_0_is_read_and_not_learned(inputs):
    messages = talk("a", "b", "c", "d")
    messages[1]["weight"] = 0
    for template in (CHATML, GENERATION):
        tokens, mask = encode_dialogue(inputs(template), messages)
        assert inputs().decode(tokens[mask]) == "d<|im_end|>"
        assert "b<|im_end|>" in inputs().decode(tokens)


@pytest.mark.parametrize(
    ("template", "messages", "error"),
    [
        (LLAMA2, talk("a", "b", system="s"), "refuses the messages: only user and assistant"),
        (LAST_ONLY, talk("a", "b", "c", "d"), "renders message 2 in another way with other messages around it"),
        (CHATML, talk("a"), "no message of the assistant to learn"),
        ("{% for m in messages %}{% generation %}{% break %}{% endgeneration %}{% endfor %}", talk("a", "b"), "blocks"),
        (CHATML, talk("\ufdd0", "b"), r"U\+FDD0"),
    ],
)
def test_what_cannot_be_told_apart_is_an_error(inputs, template, messages, error):
    with pytest.raises(zoo.ZooError, match=error) as caught:
        encode_dialogue(inputs(template), messages)
    assert "\n" not in str(caught.value)


def test_a_template_that_asks_for_today_gives_the_same_tokens_tomorrow(inputs):
    found = inputs("{{ strftime_now('%d %b %Y') }}" + CHATML)
    assert find_answers(found, talk("a", "b")).text.startswith("26 Jul 2024<|im_start|>user")
    assert not found.decode(found.chat(talk("a"))).startswith("26 Jul 2024")


def test_a_model_without_a_template_speaks_chatml_if_it_has_its_tokens(inputs):
    bare = dataclasses.replace(inputs(), chat_template="", end_token="</s>")
    assert with_template(bare) == inputs()
    with pytest.raises(zoo.ZooError, match=r"no chat template, and no tokens <\|im_start\|> and <\|im_end\|>"):
        with_template(TextInputs("byte", "", 64))


# Rows.


def test_first_fit_fills_the_first_row_that_has_room():
    assert first_fit([5, 6, 3, 4, 2, 8], 8) == [(0, 0), (1, 0), (0, 5), (2, 0), (1, 6), (3, 0)]
    assert first_fit([], 8) == []


@pytest.mark.parametrize("packed", [True, False])
def test_every_token_of_an_answer_is_a_target_once(inputs, packed):
    dataset = load(CHATS, inputs(), packed=packed, context=256)
    expected = sorted(
        inputs().decode(dialogue.tokens[dialogue.answers]) for dialogue in map(encoded(inputs()), chats())
    )
    for batch_size in (1, 3, 64):
        found = []
        for batch in dataset.train.eval_batches(batch_size):
            for targets, weight, segments in zip(batch["targets"], batch["weight"], batch["segments"], strict=True):
                numbers = np.unique(segments[weight > 0])
                found += [inputs().decode(targets[(weight > 0) & (segments == number)]) for number in numbers]
        assert sorted(found) == expected
    assert dataset.train.size == len(chats()) if not packed else dataset.train.size < len(chats()) / 2


def encoded(inputs):
    return lambda messages: encode_dialogue(inputs, messages)


def test_a_batch_follows_from_the_seed_and_its_number_in_every_layout(inputs):
    split = load(CHATS, inputs(), context=128).train
    whole = split.batches(6, seed=3)(5)
    again = load(CHATS, inputs(), context=128).train.batches(6, seed=3)(5)
    parts = [split.batches(6, 3, rows)(5) for rows in np.split(np.arange(6), 3)]
    for name, array in whole.items():
        np.testing.assert_array_equal(again[name], array)
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


def test_a_long_conversation_loses_its_end_and_one_without_an_answer_is_left_out(inputs, tmp_path):
    path = written(tmp_path / "x.jsonl", talk("ab", "c" * 90), talk("d" * 200, "e"), talk("f", "g"))
    with pytest.warns(
        UserWarning, match=r"of 3 conversations to train 2 are longer than data.context 48.*1 of them have"
    ):
        split = load(path, inputs(), context=48).train
    assert split.conversations == 2
    batch = split.read(np.arange(split.size))
    assert inputs().decode(batch["targets"][batch["weight"] > 0]).startswith("ccc")
    with (
        pytest.warns(UserWarning, match="3 of them have"),
        pytest.raises(zoo.ZooError, match=r"no answer in .* begins"),
    ):
        load(path, inputs(), context=8)


def test_files_of_a_folder_are_splits_by_their_names(inputs, tmp_path):
    for name, word in (("train", "t"), ("valid", "v"), ("test", "x")):
        written(tmp_path / f"{name}.jsonl", talk("a", word), talk("a", word))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.warns(UserWarning, match=r"left out .*notes\.txt.*no \.jsonl"):
        dataset = load(tmp_path, inputs(), validation_fraction=0.5)
    for split, word in (("train", "t"), ("validation", "v"), ("test", "x")):
        assert [inputs().decode(turn.answer) for turn in dataset.split(split).turns(9)] == [f"{word}<|im_end|>"] * 2
    held = load(CHATS, inputs(), validation_fraction=0.1, context=128)
    assert (held.train.conversations, held.validation.conversations) == (36, 4)


# The loss.


@pytest.fixture(scope="module")
def model(folder):
    return zoo.load(folder)


def summed(model, variables, tokens, mask):
    """The summed cross-entropy of a conversation's answers, read by itself."""
    log_probabilities = jax.nn.log_softmax(model.apply(variables, tokens[None, :-1])[0])
    losses = -jnp.take_along_axis(log_probabilities, tokens[1:, None], axis=-1)[:, 0]
    return jnp.sum(losses * mask[1:])


@pytest.mark.parametrize("packed", [True, False])
def test_the_loss_is_that_of_each_conversation_alone(model, packed):
    dataset = load(CHATS, model.inputs, packed=packed, context=128)
    found = evaluated(
        Dialogues(), model.model, model.inputs, make_layout("jit", 4, 1), 4, model.variables, dataset.train
    )
    dialogues = [encode_dialogue(model.inputs, messages) for messages in chats()]
    count = sum(dialogue.answers.sum() for dialogue in dialogues)
    total = sum(float(summed(model.model, model.variables, *dialogue)) for dialogue in dialogues)
    assert found["loss"] == pytest.approx(total / count, rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(total / count), rel=1e-4)
    assert 0 <= found["accuracy"] < 0.2


def test_targets_outside_answers_have_no_part_in_loss_and_gradient(model):
    batch = load(CHATS, model.inputs, context=128).train.batches(4, 0)(0)
    args, kwargs = model.inputs.arguments(batch)
    logits = model.model.apply(model.variables, *args, **kwargs)
    other = {**batch, "targets": np.where(batch["weight"] > 0, batch["targets"], 7)}

    def total(logits, batch):
        return loss_of(Dialogues(), model.inputs, logits, batch, train=True).total

    ours, theirs = (jax.value_and_grad(total)(logits, each) for each in (batch, other))
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])
    assert not np.asarray(ours[1])[batch["weight"] == 0].any()
    assert np.asarray(ours[1])[batch["weight"] > 0].any(axis=-1).all()


# Runs.


def settings(folder, workdir, **changes):
    config = load_recipe("dialogues").config()
    optimizer = dataclasses.replace(config.optimizer, learning_rate=1e-2, warmup_steps=2, lora_rank=4)
    data = DialogueData(path=str(CHATS), context=128)
    log = train.LogConfig(every=10, tensorboard=False)
    model = dataclasses.replace(config.model, weights=str(folder))
    small = dataclasses.replace(
        config, workdir=str(workdir), steps=30, batch_size=4, parallel="jit", eval_every=30, log=log
    )
    return dataclasses.replace(small, model=model, data=data, optimizer=optimizer, **changes)


@pytest.fixture(scope="module")
def low_rank(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "low-rank"
    return workdir, train.run(settings(folder, workdir))


def before(model):
    """The held-out loss of the weights that training starts from."""
    dataset = load(CHATS, model.inputs, context=128, validation_fraction=0.1)
    layout = make_layout("jit", 4, 1)
    return evaluated(Dialogues(), model.model, model.inputs, layout, 4, model.variables, dataset.validation)["loss"]


def held_out(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row["split"] == "validation"][-1]


def test_low_rank_updates_lower_the_held_out_loss_and_leave_the_rest(low_rank, model):
    workdir, _ = low_rank
    assert held_out(workdir) < before(model) - 0.1  # the embedding, which is the head too, stays as it was drawn
    trained, given = zoo.load(workdir).variables["params"], model.variables["params"]
    np.testing.assert_array_equal(trained["embedding"], given["embedding"])
    for name in ("gate", "up", "down"):
        ours, theirs = (params["layers"]["layer0"]["mlp"][name]["kernel"] for params in (trained, given))
        assert (ours != theirs).any()


def test_whole_fine_tuning_lowers_the_held_out_loss(folder, model, tmp_path):
    config = settings(folder, tmp_path / "run")
    train.run(dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, lora_rank=None)))
    assert held_out(tmp_path / "run") < before(model) - 0.5
    assert (zoo.load(tmp_path / "run").variables["params"]["embedding"] != model.variables["params"]["embedding"]).any()


def test_a_run_keeps_tokenizer_and_template(low_rank, model, capsys, monkeypatch):
    workdir, _ = low_rank
    for place in (workdir, workdir / "export"):
        run = zoo.load(place)
        assert run.inputs == dataclasses.replace(model.inputs, length=128)
        np.testing.assert_array_equal(run.inputs.chat(talk("Hi")), model.inputs.chat(talk("Hi")))
    assert command(["generate", str(workdir), "--prompt", "Hi", "--length", "4"]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
    assert command(["chat", str(workdir), "--length", "4"]) == 0
    assert main(["evaluate", str(workdir), "--split", "validation"]) == 0
    assert "4 conversations" in capsys.readouterr().out


def test_a_run_ends_with_an_answer_and_its_report_has_several(low_rank, capsys):
    workdir, _ = low_rank
    run, dataset = zoo.load(workdir), load(CHATS, zoo.load(workdir).inputs, context=128, validation_fraction=0.1)
    shown = Dialogues().example(run, dataset, workdir)
    assert "  <|im_start|>system\n  Convert units. Answer with one equation.<|im_end|>" in shown
    assert "the dialogue's own:\n  5 m = 500 cm<|im_end|>" in shown
    assert f"python -m zoo chat {workdir}" in shown
    assert main(["report", str(workdir)]) == 0
    page = (workdir / "report" / "report.html").read_text()
    assert "5 m = 500 cm" in page
    assert page.count("<tr>") == 1 + 4


def test_a_base_model_becomes_one_for_dialogue(folder, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (base / name).write_bytes((folder / name).read_bytes())
    train.run(dataclasses.replace(settings(base, tmp_path / "run"), steps=1, batch_size=8, parallel="mesh"))
    inputs = zoo.load(tmp_path / "run").inputs
    assert (inputs.chat_template, inputs.end_token) == (CHATML, "<|im_end|>")


@pytest.mark.slow
def test_a_run_resumes_bit_exactly(folder, tmp_path):
    log = train.LogConfig(every=4, tensorboard=False)  # both halves end with a row of metrics
    config = dataclasses.replace(settings(folder, tmp_path / "whole"), steps=8, eval_every=4, log=log)
    train.run(config)
    assert_resumes(tmp_path / "whole", config, tmp_path / "half")


# Damaged files.

GOOD = json.dumps({"messages": talk("a", "b")})
DAMAGED = [
    ("{", "no JSON"),
    ("[1]", r'must be {"messages": \[...\]} with at least one message, not \[1\]'),
    ("{}", "must be"),
    ('{"messages": []}', "at least one message"),
    ('{"messages": "x"}', "at least one message"),
    ('{"messages": [{"role": 1, "content": "x"}]}', 'message 1 must be {"role": "user"'),
    ('{"messages": ["x"]}', "message 1 must be"),
    (
        '{"messages": [{"role": "asistant", "content": "x"}]}',
        "the role of message 1 must be one of system, .*'asistant'",
    ),
    (json.dumps({"messages": [{"role": "user", "content": "x"}] * 1025}), "1,025 messages, more than 1,024"),
    ('{"messages": [{"role": "user", "content": null}]}', "the content of message 1 must be text, not None"),
    ('{"messages": [{"role": "assistant", "content": " "}]}', "message 1, of the assistant, is empty"),
    ('{"messages": [{"role": "user", "content": "x"}]}', "no message of the assistant"),
    ("[" * 100_000, "no JSON: it is nested"),
]


@pytest.mark.parametrize(("line", "error"), DAMAGED)
def test_a_damaged_line_is_left_out_with_its_number(inputs, tmp_path, line, error):
    path = written(tmp_path / "x.jsonl", GOOD, "", line, GOOD)
    with pytest.warns(
        UserWarning, match=rf"of 3 conversations in '.*x\.jsonl' 1 are left out: line 3: .*{error}"
    ) as caught:
        assert load(path, inputs()).train.conversations == 2
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    path = written(path, line)
    with pytest.raises(zoo.ZooError, match=rf"x\.jsonl' has no conversation to learn from: line 1: .*{error}") as one:
        load(path, inputs())
    assert "\n" not in str(one.value)


def test_bytes_that_are_no_text_and_lines_beyond_a_bound(inputs, tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\xff\n" + GOOD.encode().replace(b'"a"', b'"%s"' % (b"a" * 5000))
    )
    monkeypatch.setattr("train.data.dialogues.MOST_LINE", 999)
    with pytest.warns(UserWarning, match="line 2: not UTF-8 text: byte 0xff at 0; line 3: more than 999 bytes"):
        assert load(path, inputs()).train.conversations == 1
    monkeypatch.setattr("train.data.dialogues.MOST_TOKENS", 5)
    with pytest.raises(zoo.ZooError, match="has more than 5 tokens"):
        load(path, inputs())


def test_many_damaged_lines_are_one_warning(inputs, tmp_path):
    path = written(tmp_path / "x.jsonl", GOOD, *["x"] * 9)
    with pytest.warns(UserWarning, match=r"9 are left out: line 2: .*; line 3: .*; line 4: .*; and 6 more$"):
        load(path, inputs())


def test_content_may_come_in_parts_of_text(inputs, tmp_path):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    path = written(tmp_path / "x.jsonl", [{"role": "user", "content": parts}, {"role": "assistant", "content": parts}])
    (turn,) = load(path, inputs()).train.turns(2)
    assert inputs().decode(turn.answer) == "ab<|im_end|>"
    path = written(path, [{"role": "user", "content": [{"type": "image_url"}]}])
    with pytest.raises(zoo.ZooError, match="must be text"):
        load(path, inputs())


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ([], "data.path must be a file of JSON lines"),
        (["--data.path", "nothing.jsonl"], "data.path 'nothing.jsonl' is no file or folder"),
        (["--data.path", "empty.jsonl"], "'empty.jsonl' is empty"),
        (["--data.path", "damaged.jsonl"], "'damaged.jsonl' has no conversation to learn from: line 1: no JSON"),
        (["--data.path", "."], "has no conversation to learn from"),
        (["--data.path", "damaged.jsonl", "--data.context", "1"], "data.context must be at least 2, not 1"),
        (["--data.path", "damaged.jsonl", "--model.weights", "None"], "dialogues need model.weights"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(flags, error, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "damaged.jsonl", "x")
    pathlib.Path("empty.jsonl").touch()
    assert main(["dialogues", "--model.weights", str(folder), *flags]) == 2
    message = capsys.readouterr().err.strip()
    assert error in message
    assert "\n" not in message


def test_a_model_that_cannot_keep_conversations_apart_is_refused():
    with pytest.raises(zoo.ZooError, match="RecurrentLM takes no segments, so it cannot keep conversations apart"):
        DialogueData().check_model(zoo.model_info("lstm_lm").module_class)
    DialogueData(packed=False).check_model(zoo.model_info("lstm_lm").module_class)
