"""The pages for people: real results, nothing from elsewhere, and docs in which Execute works."""

import asyncio
import html
import re
import shutil
import time
from itertools import pairwise

import pytest

from service import pages
from service.errors import Problem
from tests.service.test_history import contrast
from tests.service.test_projects import case

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


# ---- projects ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(service):
    """A project with a hostile reason, a regression, two branches and more cases than a page has."""
    base = {"branch": "main", "commit": "4f1c", "policy": {"new": "create"}}
    cases = [case(f"case {i:02}", verdict=("pass", "inconclusive", None)[i % 3]) for i in range(25)]
    first = service.post("/v1/projects/shown/check", json={**base, "cases": cases}).json()["run"]
    worse = [case("case 07", 40, digest="1" * 64, findings=["<b>zeros</b>"]), *(row for row in cases if row["name"] != "case 07")]
    service.post("/v1/projects/shown/check", json={**base, "branch": "fix/x", "started_from": "main", "cases": worse})
    service.put("/v1/projects/shown/baselines/default", json={"run_id": first, "reason": "<script>alert(1)</script>"})
    return "/projects/shown"


def test_a_project_shows_its_verdict_history_and_moves(service, project):
    text = service.get(project).text
    assert '<strong class="status regressed">regressed</strong>' in text
    assert "case 07: regressed" in text
    assert "max_ulp 40.5, was 0.5" in text
    assert "created, as the policy of the suite says" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<script" not in text
    assert text.count('<svg xmlns="http://www.w3.org/2000/svg" class="plot"') == 20
    assert text.index("case 07</h3>") < text.index("case 00</h3>")  # the worst first
    assert "page 2" in text
    assert text.count("<article") == 20
    assert service.get(project, params={"page": 2}).text.count("<article") == 5


def test_a_project_is_shown_by_branch(service, project):
    text = service.get(project, params={"branch": "main"}).text
    assert "Last verdict of branch main" in text
    assert "case 07: regressed" not in text
    assert service.get(project, params={"branch": "none"}).status_code == 404
    assert service.get("/projects/nowhere").status_code == 404
    assert service.get(project, params={"page": 0}).status_code == 422


def test_projects_are_listed_and_an_empty_one_says_what_to_do(service, project):
    assert f'href="{project}"' in service.get("/projects").text
    service.post("/v1/projects/bare/runs", json={"branch": "main", "cases": [case("a")]})
    text = service.get("/projects/bare").text
    assert "softgauge check --url" in text
    assert "There is no baseline yet" in text


def test_what_a_project_links_to_is_there(service, project):
    text = service.get(project).text
    links = {html.unescape(link) for link in re.findall(r'href="([^"]*)"', text)}
    assert any("format=csv" in link for link in links)
    for link in links:
        assert service.get(link).status_code == 200, link


def test_a_project_is_well_formed(service, project):
    """Headings in order, tables with heads, plots with words, no style or script of its own."""
    text = service.get(project).text
    levels = [int(level) for level in re.findall(r"<h([1-6])", text)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(re.findall(r"<th(?=[ >])", text)) == len(re.findall(r'<th scope="', text))
    assert len(re.findall(r'<svg[^>]*role="img" aria-label="[^"]+"', text)) == text.count("<svg")
    assert not re.search(r"<style|\sstyle=|\son\w+=", text)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_a_project_fits_the_screen_and_can_be_read(service, browser, project, scheme, width):
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    complaints = []
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    tab.goto(str(service.base_url.join(project)))
    tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    colours = tab.evaluate(
        """() => [...document.querySelectorAll('main *, header *')].filter(one => one.childNodes.length && one.innerText?.trim())
        .map(one => [one.className, getComputedStyle(one).color])"""
    )
    paper = _hex(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    panel = _hex(tab.evaluate("getComputedStyle(document.querySelector('.plot')).backgroundColor"))
    assert colours
    for name, colour in {(name, colour) for name, colour in colours}:
        assert contrast(_hex(colour), paper) >= 4.5, (name, colour)
    fills = tab.evaluate("[...document.querySelectorAll('.plot text')].map(one => getComputedStyle(one).fill)")
    assert all(contrast(_hex(fill), panel) >= 4.5 for fill in set(fills))
    strokes = tab.evaluate("[...document.querySelectorAll('.plot .line, .plot .cross')].map(one => getComputedStyle(one).stroke)")
    assert all(contrast(_hex(stroke), panel) >= 3 for stroke in set(strokes))
    assert complaints == []
    tab.close()


def _hex(colour):
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])
