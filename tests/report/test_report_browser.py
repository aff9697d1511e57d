"""Open the HTML report in a browser without a network: charts, sorting, filter, security."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from sftsearch.orchestrator.analysis.analyse import Analysis
from sftsearch.orchestrator.report.formats import write_report

from report_studies import summarize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sftsearch.orchestrator.storage.study_record import StudyRecord

pytestmark = pytest.mark.service

# Switch off the browser's own network requests (updates, sync, lookups).
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]
POINTS = "#front-chart .scatterlayer .point"


class PageLog:
    """Requests and console messages of a page."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.messages: list[str] = []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        reason = "no `chromium` on the path: install it (Debian: apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., tuple[Page, PageLog]]]:
    """Return a function that writes a study's page, opens it offline and waits for its charts."""
    contexts = []

    def open_(study: StudyRecord, **settings: Any) -> tuple[Page, PageLog]:
        (path,) = write_report(Analysis.of(summarize(study)), ["html"], tmp_path)
        context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
        contexts.append(context)
        log = PageLog()
        context.set_default_timeout(10_000)
        context.on("request", lambda request: log.requests.append(request.url))
        page = context.new_page()
        page.on("console", lambda message: log.messages.append(message.text))
        page.on("pageerror", lambda error: log.messages.append(str(error)))
        page.on("dialog", lambda dialog: log.messages.append(dialog.message))
        page.emulate_media(**settings)
        page.goto(path.as_uri())
        page.wait_for_selector("#progress-chart .scatterlayer, #progress-chart.empty")
        log.requests.remove(path.as_uri())
        return page, log

    yield open_
    for context in contexts:
        context.close()


def column(page: Page, header: str) -> list[str]:
    """Return the shown cells of a column, from the top."""
    headers = page.locator("#table th").all_inner_texts()
    number = next(i for i, text in enumerate(headers) if text.strip(" ↑↓") == header) + 1
    return page.locator(f"#table tbody tr:visible td:nth-child({number})").all_inner_texts()


def test_charts_have_a_point_per_configuration(
    open_page: Callable[..., tuple[Page, PageLog]], study: StudyRecord
) -> None:
    page, log = open_page(study)
    assert page.locator(POINTS).count() == 18  # of 20, one failed and one is incomplete
    assert page.locator("#front-chart .errorbars path.yerror").count() == 18
    assert page.locator("#front-chart .lines path.js-line").count() == 1
    assert page.locator("#progress-chart .lines path.js-line").count() == 1
    assert page.locator("#front-chart .annotation-text").text_content() == "knee"
    assert (log.requests, log.messages) == ([], [])


def test_charts_have_a_step_line_and_a_log_axis(
    open_page: Callable[..., tuple[Page, PageLog]], study: StudyRecord
) -> None:
    page, _ = open_page(study)
    chart = page.evaluate(
        "(({_fullLayout: l, _fullData: d}) => [l.xaxis.type, d[0].line.shape, d[0].x.length])"
        "(document.getElementById('front-chart'))"
    )
    assert chart == ["log", "hv", 10]  # 9 front points and the end at the highest cost


def test_charts_describe_the_hovered_configuration(
    open_page: Callable[..., tuple[Page, PageLog]], study: StudyRecord
) -> None:
    page, log = open_page(study)
    page.locator(POINTS).last.hover(force=True)
    page.wait_for_selector("#front-chart .hoverlayer .hovertext")
    text = page.locator("#front-chart .hoverlayer .hovertext").text_content() or ""
    shown = page.evaluate("document.getElementById('front-chart')._hoverdata[0].customdata")
    best = next(t for t in study.trials if t.configuration_id == shown)
    assert shown in text
    assert best.model in text
    for name in (
        "stride=",
        "fused_layers=",
        "learning_rate=0.001",
        "multiply-adds (paper)",
        "latency (ms)",
        "±",
    ):
        assert name in text
    assert "<br>" not in text
    assert log.messages == []


def test_charts_mark_the_row_of_a_clicked_point(
    open_page: Callable[..., tuple[Page, PageLog]], study: StudyRecord
) -> None:
    page, _ = open_page(study)
    page.locator(POINTS).last.click(force=True)
    chosen = page.locator("tr.chosen")
    chosen.wait_for()
    assert chosen.count() == 1
    hovered = page.evaluate("document.getElementById('front-chart')._hoverdata[0].customdata")
    assert chosen.get_attribute("data-id") == hovered


def test_page_compares_the_models_in_a_table(
    open_page: Callable[..., tuple[Page, PageLog]], study: StudyRecord
) -> None:
    page, log = open_page(study)
    heads = page.locator("#families th").all_inner_texts()
    assert (heads[0], heads[-1]) == ("family", "expected best of 3")
    names = page.locator("#families tbody td:first-child").all_inner_texts()
    assert names == ["concat", "late_fusion", "sft", "sft_po", "unimodal"]
    for level in range(2, len(heads)):
        cells = page.locator(f"#families tbody td:nth-child({level})").all_inner_texts()
        assert sum("*" in cell for cell in cells) == 1
    page.get_by_label("Filter").fill("sft_po")  # filters only the other table
    assert page.locator("#families tbody tr:visible").count() == 5
    assert page.get_by_role("heading", name="Families compared").is_visible()
    assert (log.requests, log.messages) == ([], [])


def number(text: str) -> float:
    """Return the number of a cell, with its SI prefix."""
    digits, _, prefix = text.replace(",", "").partition(" ")
    return float(digits) * {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}[prefix]


@pytest.mark.parametrize(
    "header", ["multiply-adds (paper)", "parameters", "stride", "latency (ms)"]
)
def test_table_header_sorts_by_number(
    open_page: Callable[..., tuple[Page, PageLog]], study: StudyRecord, header: str
) -> None:
    page, _ = open_page(study)
    button = page.get_by_role("button", name=header, exact=True)
    cell = page.get_by_role("columnheader", name=header, exact=True)
    assert cell.get_attribute("aria-sort") == "none"
    for direction in ("ascending", "descending"):
        button.click()
        assert cell.get_attribute("aria-sort") == direction
        values = [number(text) for text in column(page, header)]
        assert len(values) == 20
        assert values == sorted(values, reverse=direction == "descending")
    assert page.locator("#table th:not([aria-sort=none])").count() == 1


def test_table_sorted_by_keyboard_keeps_unknown_values_last(
    open_page: Callable[..., tuple[Page, PageLog]], study: StudyRecord
) -> None:
    page, _ = open_page(study)
    button = page.locator("#table th button", has_text="95 % CI")
    button.focus()
    for _ in range(2):
        page.keyboard.press("Enter")
        assert [text[:1] for text in column(page, "95 % CI")][-2:] == ["\u2013"] * 2
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "multiply-adds (paper)"


def test_table_filter_keeps_rows_with_every_word(
    open_page: Callable[..., tuple[Page, PageLog]], study: StudyRecord
) -> None:
    page, _ = open_page(study)
    page.get_by_label("Filter").fill("SFT_PO near")
    models = column(page, "model")
    assert models
    assert set(models) == {"sft_po"}
    assert page.locator("#shown").inner_text() == f"{len(models)} of 20 shown"
    page.get_by_label("Filter").fill("phone_gyro")  # abbreviated as `all 4` in the cell
    assert set(column(page, "model")) == {"sft", "sft_po", "concat", "late_fusion"}
    page.get_by_label("Filter").fill("")
    assert len(column(page, "model")) == 20


def test_charts_have_no_button_that_uploads(
    open_page: Callable[..., tuple[Page, PageLog]], study: StudyRecord
) -> None:
    page, _ = open_page(study)
    titles = page.evaluate(
        "[...document.querySelectorAll('.modebar-btn')].map(button => button.dataset.title)"
    )
    assert set(titles) == {"Download plot as a PNG", "Zoom", "Pan", "Reset axes"}
    assert page.locator(".modebar-btn--logo").count() == 0


def test_charts_can_be_saved_as_a_picture(
    open_page: Callable[..., tuple[Page, PageLog]], study: StudyRecord, tmp_path: Path
) -> None:
    page, log = open_page(study)
    with page.expect_download() as download:
        page.locator("#front-chart .modebar-btn").first.click(force=True)
    download.value.save_as(tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert log.messages == []
    assert all(url.startswith(("data:", "blob:")) for url in log.requests)


def test_page_shows_hostile_text_and_runs_nothing(
    open_page: Callable[..., tuple[Page, PageLog]], study: StudyRecord
) -> None:
    hostile = "</script><img src=x onerror=alert(1)><script>alert(2)</script>"
    trials = tuple(
        replace(trial, model=f"{trial.model}{hostile}", reason=hostile if trial.reason else "")
        for trial in study.trials
    )
    page, log = open_page(
        replace(study, name=hostile, trials=trials, facts={hostile: hostile}, refused={hostile: 3})
    )
    assert page.locator("h1").inner_text() == hostile
    assert page.locator("main img").count() == 0
    assert hostile in column(page, "model")[0]
    page.locator(POINTS).last.hover(force=True)
    page.wait_for_selector("#front-chart .hoverlayer .hovertext")
    assert hostile in (page.locator(".hoverlayer .hovertext").text_content() or "")
    assert (log.requests, log.messages) == ([], [])


def test_policy_blocks_unescaped_scripts(
    browser: Browser, study: StudyRecord, tmp_path: Path
) -> None:
    """With the content security policy even unescaped text can neither run nor load."""
    (path,) = write_report(Analysis.of(summarize(study)), ["html"], tmp_path)
    intruder = "<img src=http://127.0.0.1:9/x onerror='window.ran=1'><script>window.ran=1</script>"
    path.write_text(path.read_text().replace("<main>", f"<main>{intruder}"))
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector(POINTS)
    assert page.evaluate("window.ran") is None
    page.close()


def test_page_follows_the_color_scheme(
    open_page: Callable[..., tuple[Page, PageLog]], study: StudyRecord
) -> None:
    page, log = open_page(study, color_scheme="dark")
    ink = "getComputedStyle(document.querySelector('#front-chart .xtitle')).fill"
    assert page.evaluate(ink) == "rgb(230, 234, 240)"
    page.emulate_media(color_scheme="light")
    page.wait_for_timeout(500)  # wait_for_function needs eval, which the policy forbids
    assert page.evaluate(ink) == "rgb(28, 36, 48)"
    assert log.messages == []


def test_page_needs_no_sideways_scrolling_on_a_phone(
    open_page: Callable[..., tuple[Page, PageLog]], study: StudyRecord
) -> None:
    page, _ = open_page(study)
    page.set_viewport_size({"width": 380, "height": 800})
    page.wait_for_timeout(300)  # the charts are resized
    assert page.evaluate("document.documentElement.scrollWidth") <= 380


def test_page_exists_of_a_study_without_results(
    open_page: Callable[..., tuple[Page, PageLog]], study: StudyRecord
) -> None:
    page, log = open_page(replace(study, trials=()))
    assert page.locator("#front-chart").inner_text() == "Nothing to draw yet."
    assert page.locator("#table tbody tr").count() == 0
    assert log.messages == []
