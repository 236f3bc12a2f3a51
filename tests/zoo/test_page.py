"""The page of the server in a real browser: what is drawn and typed gives the answer on the page."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from serving import serving

import zoo
from zoo.decode import Conversation, translate
from zoo.inputs.pairs import PairInputs
from zoo.inputs.text import TextInputs
from zoo.run import Run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET = ["--disable-background-networking", "--disable-component-update"]
TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}a:"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")


def language_model():
    symbols = "\n :?abcdefghijklmnopqrstuvwxyz"
    inputs = TextInputs(length=64, tokenizer="char", vocabulary=symbols, chat_template=TEMPLATE)
    model = zoo.create_model("gpt2", vocab_size=len(symbols), hidden_size=32, num_layers=1, num_heads=2, max_length=900)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32))
    return Run(model, jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 1 else leaf, variables), inputs)


def translator():
    inputs = PairInputs(TextInputs("char", "abc", 12), TextInputs("char", "xyz", 6))
    sizes = {"vocab_size": 7, "source_vocab_size": 7, "hidden_size": 8, "embedding_size": 6, "num_layers": 1}
    model = zoo.create_model("seq2seq_lstm_luong", **sizes)
    return Run(model, jax.jit(model.init)(jax.random.key(0), np.zeros((1, 2), np.int32)), inputs)


@pytest.fixture(scope="module")
def runs():
    return {"lenet5": zoo.load("lenet5"), "tiny": language_model(), "pairs": translator()}


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=ARGS + QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(runs):
    with serving(runs, batch=4, slots=2, context=800) as (address, _):
        yield address


@pytest.fixture
def page(browser, address):
    """The page at the width of a phone; whatever it asks of another host, and any error in it, is a failure."""
    page, problems = browser.new_page(viewport={"width": 390, "height": 900}), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if wrong(request.url, address) else None)
    page.goto(address)
    page.wait_for_selector("[role=tab]")
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not problems
    page.close()


def expect(page, selector, text):
    """Waits until an element has just this text."""
    from playwright.sync_api import expect

    locator = page.locator(selector)
    expect(locator).to_have_text(text, timeout=20_000)
    assert locator.text_content() == text  # which the line above reads without regard to white space


def wrong(url, address):
    return not url.startswith((address, "data:", "blob:"))


def test_a_drawn_seven_is_a_seven_with_its_features_and_grad_cam(page):
    assert page.get_by_role("tab").all_inner_texts() == ["Draw", "Photo", "Write", "Chat", "Translate"]
    board = page.locator("#board").bounding_box()
    for i, (x, y) in enumerate([(70, 60), (200, 60), (160, 140), (120, 230)]):
        page.mouse.move(board["x"] + x, board["y"] + y, steps=6)
        if not i:
            page.mouse.down()
    page.mouse.up()
    expect(page, "#labels span >> nth=0", "7")
    assert page.locator("#heat canvas").is_visible()
    assert page.locator("#heat figcaption").inner_text() == "Grad-CAM"
    assert page.locator("#maps img").count() == 2
    page.get_by_role("button", name="Clear").click()
    assert page.locator("#answer").is_hidden()


def test_a_one_is_drawn_by_keys_alone(page):
    page.locator("#board").focus()
    for _ in range(9):
        page.keyboard.press("ArrowUp")
    page.keyboard.down(" ")
    for _ in range(18):
        page.keyboard.press("ArrowDown")
    page.keyboard.up(" ")
    expect(page, "#labels span >> nth=0", "1")


def test_a_photo_is_classified_and_what_is_none_is_said(page):
    page.get_by_role("tab", name="Photo").click()
    pixels, file = np.zeros((28, 28), np.uint8), io.BytesIO()
    pixels[4:24, 13:16] = 255
    Image.fromarray(pixels).save(file, "PNG")
    page.set_input_files("#file", {"name": "one.png", "mimeType": "image/png", "buffer": file.getvalue()})
    expect(page, "#labels span >> nth=0", "1")
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"})
    expect(page, "#error", "notes.txt is no image that this browser reads")


def test_a_prompt_streams_its_text(page, runs):
    page.get_by_role("tab", name="Write").click()
    page.fill("#prompt", "hello")
    page.fill("#temperature", "0")
    page.fill("#length", "60")
    page.press("#prompt", "Enter")
    wanted = "hello" + zoo.generate(runs["tiny"], "hello", 60, temperature=0)
    expect(page, "#written", wanted)
    page.fill("#prompt", "UPPER")
    page.press("#prompt", "Enter")
    expect(page, "#error", "'U', 'P', 'E', 'R' is not among the 30 characters of the vocabulary")


def test_a_chat_has_several_turns(page, runs):
    page.route("**/v1/chat/completions", lambda route: route.continue_(post_data=short(route.request.post_data_json)))
    page.get_by_role("tab", name="Chat").click()
    talk = Conversation(runs["tiny"], length=30)
    for turn, text in enumerate(("hello", "why?")):
        page.fill("#message", text)
        page.press("#message", "Enter")
        answer = "".join(talk.ask(text))
        expect(page, f".assistant >> nth={turn}", answer)
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".said").count() == 0


def short(body):
    return json.dumps({**body, "max_tokens": 30})


def test_a_translation_has_its_attention(page, runs):
    page.get_by_role("tab", name="Translate").click()
    page.fill("#source", "abca")
    page.press("#source", "Enter")
    ((best,),) = translate(runs["pairs"], ["abca"])
    page.wait_for_selector("#attention:not([hidden])")
    assert page.locator("#target").inner_text() == best.text
    assert page.locator("#attention").get_attribute("aria-label").endswith("to a b c a </s>")


def test_tabs_are_reached_by_arrow_keys_and_a_key_is_asked_for(browser, runs):
    with serving({"lenet5": runs["lenet5"]}, key="secret", batch=1) as (address, _):
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#login:not([hidden])")
        page.fill("#key", "secret")
        page.press("#key", "Enter")
        page.wait_for_selector("[role=tab]")
        assert page.locator("#login").is_hidden()
        page.get_by_role("tab", name="Draw").focus()
        page.keyboard.press("ArrowRight")
        assert page.get_by_role("tab", name="Photo").get_attribute("aria-selected") == "true"
        page.close()
