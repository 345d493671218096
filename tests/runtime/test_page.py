"""The page in a real browser, on a real bundle."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

import pytest

from export.runtime import Choice, Runtime
from tests.support.bundles import FAMILIES, Made
from tests.support.families import QUESTION as QUESTION_OF_TILES
from tests.support.serving import serving
from tests.support.tiny import QUESTIONS, SCALES
from tests.support.view_bundles import PICTURES, view_bundle
from tests.support.view_bundles import SCALES as VIEW_SCALES

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 860}
QUESTION = QUESTIONS[0]
WAIT_S = 60


@pytest.fixture(scope="module")
def browser():
    programs = [path for path in map(shutil.which, BROWSERS) if path]
    if not programs:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)} is on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(
            executable_path=programs[0], args=["--no-sandbox", "--use-fake-device-for-media-stream",
                                               "--use-fake-ui-for-media-stream"]
        )  # fmt: skip
        yield opened
        opened.close()


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def made(request) -> Made:
    return request.param()


@pytest.fixture(scope="module")
def served(made):
    """A server whose router goes down the ladder as the price goes up; the tiny one stays at one scale."""
    runtime = Runtime.load(made.bundle, threads=1)
    choose = runtime.router.choose

    def by_price(image, question, terms, *more) -> Choice:
        scale = next((m for m, price in ((144, 0.03), (36, 0.2), (9, 1.0)) if runtime.router.price(terms) < price), 1)
        return replace(choose(image, question, terms, *more), scale=scale, reason=f"{scale} tokens at this price")

    runtime.router.choose = by_price
    with serving(runtime) as server:
        yield server


def opened(page, served):
    """The page, and what it complains about."""
    page.problems = []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith((served.url, "data:", "blob:")) or
            page.problems.append(f"asked {request.url}"))  # fmt: skip
    page.goto(served.url)
    page.wait_for_selector("#ladder li")
    return page


def wait(page, condition: str) -> None:
    """Until `condition` holds. Playwright's own `wait_for_function` evaluates in the page, whose policy forbids it."""
    until = time.monotonic() + WAIT_S
    while not page.evaluate(condition):
        assert time.monotonic() < until, f"the page never came to: {condition}"
        page.wait_for_timeout(20)


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_a_question_from_the_picture_to_the_answer(browser, served, made, size):
    page = opened(browser.new_page(viewport=size), served)
    assert page.locator("#ladder li").count() == len(SCALES)
    assert page.locator("#ask").is_disabled()
    view = served.runtime.look(made.picture(0))
    page.set_input_files("#file", made.picture(0))
    page.fill("#question", QUESTION)
    page.wait_for_selector("#ladder li.chosen")

    chosen = {}
    for place in (0, 40, 60, 80, 100):
        page.locator("#price").fill(str(place))
        price = float(page.inner_text("#shown"))
        chosen[price] = int(page.get_attribute("#ladder li.chosen", "data-scale"))
        assert chosen[price] == view.choose(QUESTION, price=price).scale
        assert page.inner_text("#reason") == view.choose(QUESTION, price=price).reason
    assert len(set(chosen.values())) > 3  # the choice moves with the price

    page.click("#ask")
    page.wait_for_selector("#ladder li.answered")
    answer = view.ask(QUESTION, price=price, max_new_tokens=128)
    shown = page.locator("#answer").text_content()
    assert shown == answer.text
    assert "prefill" in page.inner_text("#legend")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out
    assert page.problems == []
    page.close()


def test_every_scale_answers_and_a_rung_shows_its_grid(browser, served, made):
    page = opened(browser.new_page(viewport=DESK), served)
    page.set_input_files("#file", made.picture(1))
    page.fill("#question", QUESTION)
    page.wait_for_selector("#ladder li.chosen")
    page.click("#every")
    for scale in SCALES:
        page.wait_for_selector(f"#ladder li.answered[data-scale='{scale}']")
    before = page.evaluate("canvas.toDataURL()")
    page.hover("#ladder li[data-scale='36']")
    assert page.evaluate("canvas.toDataURL()") != before or page.evaluate("state.shown") == 36
    caption = page.inner_text("#caption")
    assert ("6 × 6 cells" in caption) == (served.runtime.manifest.family == "pool")
    assert "12 × 12 patches" in caption
    assert page.problems == []
    page.close()


def test_a_conversation_with_a_system_text_and_several_pictures(browser, served, made):
    runtime = served.runtime
    page = opened(browser.new_page(viewport=DESK), served)
    page.click("#told summary")
    page.fill("#system", "You are brief.")
    page.set_input_files("#file", [made.picture(0), made.picture(1)])
    page.wait_for_selector("#strip button:nth-child(2)")
    assert page.inner_text("#strip").count("not asked yet") == 2
    page.fill("#question", QUESTION)
    page.wait_for_selector("#ladder li.chosen")
    page.locator("#price").fill("0")
    page.click("#ask")
    page.wait_for_selector("#ladder li.answered")
    shown = [{"type": "image", "image": made.picture(number)} for number in (0, 1)]
    asked = {"role": "user", "content": [*shown, {"type": "text", "text": QUESTION}]}
    messages = [{"role": "system", "content": "You are brief."}, asked]
    first = runtime.chat(messages, price=0, max_new_tokens=128)
    assert page.locator("#answer").text_content() == first.text
    assert page.inner_text("#strip").split("\n") == [f"{scale} tokens" for scale in first.scales]

    page.fill("#question", QUESTIONS[1])
    page.wait_for_selector("#talk .said")  # what was answered moves up as soon as the next question begins
    assert page.locator("#talk .said").text_content() == first.text
    page.set_input_files("#file", made.picture(2))
    page.wait_for_selector("#strip button:nth-child(3)")
    page.click("#ask")
    wait(page, "state.busy || state.turns.length == 2")
    third = [{"type": "image", "image": made.picture(2)}, {"type": "text", "text": QUESTIONS[1]}]
    more = {"role": "user", "content": third}
    messages += [{"role": "assistant", "content": first.text}, more]
    second = runtime.chat(messages, price=0, max_new_tokens=128, truncate="oldest")
    wait(page, "!state.busy")
    assert page.locator("#answer").text_content() == second.text
    assert page.inner_text("#talk .asked") == f"{QUESTION} (2 pictures)"
    before = page.evaluate("canvas.toDataURL()")
    page.click("#strip button:first-child")
    assert page.locator("#talk .said").all_text_contents() == [first.text, second.text]
    assert page.evaluate("canvas.toDataURL()") != before  # the stage shows that picture, in its grid

    page.click("#fresh")
    assert page.locator("#talk li, #strip button").count() == 0
    page.fill("#question", "hi")
    page.click("#ask")
    wait(page, "!state.busy && document.getElementById('answer').textContent")
    page.wait_for_timeout(page.evaluate("2 * WAIT_MS"))
    assert page.locator("#answer").text_content()  # what waits for the end of typing does not wipe a quick answer
    assert page.problems == []
    page.close()


def test_a_bundle_without_a_router_speaks_of_patches_all_the_same(browser, made):
    runtime = Runtime.load(made.bundle, threads=1)
    runtime.router = None
    with serving(runtime) as server:
        page = opened(browser.new_page(viewport=DESK), server)
        page.set_input_files("#file", made.picture(1))
        page.fill("#question", QUESTION)
        wait(page, "document.querySelector('#caption').innerText.includes('as the model gets it')")
        page.hover("#ladder li[data-scale='36']")
        wait(page, "document.querySelector('#caption').innerText.includes('all patches')")
        caption = page.inner_text("#caption")
        assert "the × the" not in caption
        assert "0 × 0" not in caption
        assert page.problems == []
        page.close()


def test_the_camera(browser, served):
    context = browser.new_context(permissions=["camera"], viewport=PHONE)
    page = opened(context.new_page(), served)
    page.click("#camera")
    page.wait_for_selector("#shoot:visible")
    wait(page, "document.getElementById('video').videoWidth")
    page.click("#shoot")
    page.wait_for_selector("#another:visible")
    page.fill("#question", QUESTION)
    page.wait_for_selector("#ladder li.chosen")
    assert page.problems == []
    context.close()


def test_what_is_wrong_is_said(browser, served, tmp_path):
    page = opened(browser.new_page(viewport=DESK), served)
    (tmp_path / "x.png").write_text("no picture")
    page.set_input_files("#file", tmp_path / "x.png")
    page.wait_for_selector("#answer.error")
    assert "no picture that a browser reads" in page.inner_text("#answer")
    page.close()


def test_a_token_is_asked_for_once(browser, made):
    with serving(Runtime.load(made.bundle, threads=1), token="secret") as locked:
        page = browser.new_page(viewport=PHONE)
        page.goto(locked.url)
        page.wait_for_selector("#token:visible")
        page.fill("#token", "secret")
        page.press("#token", "Enter")
        page.wait_for_selector("#ladder li")
        page.close()


@pytest.mark.parametrize(("kind", "routed"), [("internvl", True), ("llava_next", False), ("smolvlm", False)])
def test_tiles_lie_over_the_picture_as_the_server_says(browser, tmp_path, kind, routed):
    path = tmp_path / "wide.png"
    PICTURES["wide"].save(path)
    runtime = Runtime.load(view_bundle(kind, routed=routed).bundle, threads=1)
    laid = {scale: runtime.look(path).at(scale).laid for scale in VIEW_SCALES}
    with serving(runtime) as server:
        page = opened(browser.new_page(viewport=DESK), server)
        names = [rung.get_attribute("data-scale") for rung in page.locator("#ladder li").all()]
        assert names == [str(scale) for scale in VIEW_SCALES]
        assert "NaN" not in page.inner_html("#ladder")
        page.set_input_files("#file", path)
        page.fill("#question", QUESTION_OF_TILES)
        if routed:
            page.wait_for_selector("#ladder li.chosen")
        else:
            page.hover("#ladder li[data-scale='4@native']")
            assert "into how many, the answer says" in page.inner_text("#caption")  # nothing is guessed
        page.click("#every")
        page.wait_for_selector("#ladder li.answered[data-scale='native']")
        wait(page, "!state.busy")
        drawn = {}
        for scale, one in laid.items():
            page.hover(f"#ladder li[data-scale='{scale}']")
            (rows, cols), caption = one.tiles, page.inner_text("#caption")
            assert (f"{rows} × {cols} tiles" in caption) == (rows > 0), caption
            number = page.inner_text(f"#ladder li[data-scale='{scale}'] .number")
            assert number.split()[:2] == ([str(scale), str(one.num_visual_tokens)] if isinstance(scale, str) else
                                          [str(scale), "token" if scale == 1 else "tokens"])  # fmt: skip
            drawn[rows, cols] = page.evaluate("canvas.toDataURL()")
        assert len(set(drawn.values())) == len(drawn) > 1
        page.click("#ask")
        wait(page, "!state.busy && state.turns.length == 1")
        asked = page.evaluate("[onStage().scale, onStage().seen[onStage().scale].tiles]")
        assert asked[1] == list(laid[asked[0]].tiles)
        if not routed:
            assert asked[0] == "native"
        assert page.problems == []
        page.close()
