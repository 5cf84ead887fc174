"""The pages for people: real results, nothing from elsewhere, and docs in which Execute works."""

import asyncio
import re
import shutil
import time

import pytest

from service import pages
from service.errors import Problem

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def page(service):
    """The page, once its example is computed."""
    for _ in range(100):
        text = service.get("/").text
        if "not computed yet" not in text:
            return text
        time.sleep(0.05)
    raise TimeoutError(text)


def test_the_page_shows_the_real_result(service):
    text = page(service)
    assert text.count("<span>NaN</span>") == 9
    assert "65504" in text
    assert "0.0900" in text
    for word in ("naive", "shifted", "float16", "float32", "float64", "unstable", "accurate", "overflow"):
        assert word in text


def test_the_page_tells_how_the_truth_is_computed(service):
    text = " ".join(service.get("/").text.split())
    assert "by NumPy where that decides every figure and by arbitrary-precision arithmetic (mpmath) where it does not" in text


def test_the_example_is_asked_for_again_after_any_failure(monkeypatch):
    monkeypatch.setattr(pages, "_FIRST_TRY", 0.001)
    answers = iter([Problem("not-ready", "no process is up"), RuntimeError("no fork"), b"{", b'{"outcomes": []}'])

    class Failing:
        async def answer(self, task, body):
            if isinstance(given := next(answers), bytes):
                return given
            raise given

    example = pages.Example()
    asyncio.run(example.compute(Failing()))
    assert example.answer == {"outcomes": []}


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_brings_nothing_from_elsewhere_and_no_inline_script(service, path):
    answer = service.get(path)
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    sources = re.findall(r'(?:src|href)="([^"]*)"', answer.text)
    assert sources
    assert all(source.startswith("/") and not source.startswith("//") for source in sources)
    assert not re.search(r"<script(?![^>]*src)|<style|\son\w+=|style=", answer.text)
    for source in sources:
        assert service.get(source).status_code == 200, source


def test_the_page_has_no_script_and_says_what_it_is(service):
    text = page(service)
    assert "<script" not in text
    assert '<html lang="en">' in text
    assert text.count("<h1") == 1
    assert "<title>" in text


def test_the_docs_ask_no_validator_elsewhere(service):
    assert "validatorUrl: null" in service.get("/static/init.js").text


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright, playwright.chromium.launch(executable_path=executable, args=FLAGS) as running:
        yield running


@pytest.mark.parametrize(
    ("operation", "example"), [("evaluate", None), ("evaluate", "masked_row"), ("evaluate", "gradient"), ("truth", None)]
)
def test_execute_in_the_docs_answers_200(service, browser, operation, example):
    tab = browser.new_page()
    asked, complaints = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(str(service.base_url.join("/docs")))
    block = tab.locator(f"#operations-compute-{operation}")
    block.locator(".opblock-summary-control").click()
    if example:
        block.locator(".examples-select-element").first.select_option(example)
    block.locator("button.execute").click()
    status = block.locator(".live-responses-table tbody .response-col_status").first
    status.wait_for(timeout=10_000)
    assert "200" in status.inner_text()
    assert all(url.startswith((str(service.base_url), "data:")) for url in asked)
    assert complaints == []
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_narrow_screen_in_both_colours(service, browser, scheme):
    page(service)
    tab = browser.new_page(viewport={"width": 360, "height": 800}, color_scheme=scheme)
    complaints = []
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    tab.goto(str(service.base_url))
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    hidden = "[...document.querySelectorAll('td')].filter(cell => cell.getBoundingClientRect().right > innerWidth).length"
    assert tab.evaluate(hidden) == 0  # the table is stacked: nothing lies beyond the edge
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 28)"
    assert dark == (scheme == "dark")
    assert complaints == []
    tab.close()
