"""Reports in a real browser: nothing is loaded, curves are drawn and tell their values,
nothing sticks out of a narrow window, and no text of a run does anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser
from click.testing import CliRunner
from run_folders import make_run, write_json
from test_report import EVIL, STATUS

from launch.cli import cli
from launch.html_report import evaluation
from launch.html_report.markup import Section

LONG = "long" * 60


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all parts, long words, and texts that try to be more."""
    run = make_run(tmp_path_factory.mktemp("runs") / "one", note=f"{EVIL} {LONG}")
    write_json(run / "status.json", STATUS)
    write_json(run / "environment.json", {"command": [EVIL, LONG], LONG: LONG})
    (run / "logs").mkdir()
    line = f"2026-01-01 00:00:00,000 WARNING {EVIL} {LONG}\n"
    (run / "logs" / "rank-00000.log").write_text(line)
    names = [f"class {i} {EVIL if i == 3 else ''}" for i in range(25)]
    counts = [[float(i == j) * 90 + (i + j) % 3 for i in range(25)] for j in range(25)]
    shown = Section("Confusion matrix", evaluation.show_matrix(counts, names))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("launch.html_report.report.look", lambda *args: shown)
        words = ["report", str(run)]
        assert CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
    return run / "report.html"


@pytest.fixture(scope="module")
def comparison(page: Path) -> Path:
    runs = [page.parent, *(make_run(page.parents[1] / f"run-{i}") for i in range(8))]
    path = page.parents[1] / "comparison.html"
    words = ["report", *map(str, runs), "--output", str(path)]
    assert CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
    return path


def test_the_browser_tells_what_a_page_does(browser: Browser, tmp_path: Path) -> None:
    """Otherwise the tests below would show nothing."""
    (tmp_path / "bad.html").write_text(
        "<img src='file:///nothing.png'><script>console.log(1); none()</script>"
    )
    browser.open(tmp_path / "bad.html")
    found = " ".join(browser.complaints())
    assert "none is not defined" in found and "consoleAPICalled" in found
    assert browser.requests()[1:] == ["file:///nothing.png"]


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("which", ["page", "comparison"])
def test_it_fits_and_is_quiet(
    browser: Browser,
    width: int,
    dark: bool,
    which: str,
    request: pytest.FixtureRequest,
) -> None:
    path: Path = request.getfixturevalue(which)
    browser.open(path, width, dark)
    assert browser.complaints() == []
    assert browser.requests() == [path.as_uri()]
    assert browser.value("document.documentElement.scrollWidth") <= width
    boxes = "[...document.querySelectorAll('section, .card, .chart, .wide, pre, h1')]"
    right = f"Math.max(...{boxes}.map(e => e.getBoundingClientRect().right))"
    assert browser.value(right) <= width
    colour = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (colour == "rgb(20, 23, 27)") == dark


SCROLLED = """[...document.querySelectorAll('.wide')].filter(
  e => e.scrollWidth > e.clientWidth).map(e => [e.closest('section').id,
  getComputedStyle(e).overflowX, getComputedStyle(e).backgroundAttachment])"""


def test_tables_are_read_whole_in_a_narrow_window(browser: Browser, page: Path) -> None:
    """The edge of a box doesn't tell that the table in it is wider, and cut off."""
    browser.open(page, 400)
    found = browser.value(SCROLLED)
    # these have many columns, or words that can't be broken
    wide = {"confusion-matrix", "timing", "environment"}
    assert {place for place, *_ in found} == wide
    for _, overflow, attachment in found:
        assert overflow == "auto"
        assert "local" in attachment and "scroll" in attachment  # a shadow tells it


@pytest.mark.parametrize("width", [400, 1400])
def test_words_of_the_state_stay_whole(
    browser: Browser, comparison: Path, width: int
) -> None:
    browser.open(comparison, width)
    boxes = "[...document.querySelectorAll('td .state')].map(e => e.clientHeight)"
    heights = browser.value(boxes)
    assert len(heights) == 9 and all(0 < height < 30 for height in heights)


def test_texts_of_a_run_stay_texts(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.value("document.body.innerText.includes('<script>alert(1)')")
    assert browser.value("document.images.length") == 0
    assert browser.value("document.scripts.length") == 1 + FIGURES  # theirs are data


FIGURES = 6
DRAWN = """[...document.querySelectorAll('figure.chart')].map(
  figure => [...figure.querySelectorAll('svg:not(.away) path.line')].map(
    path => path.getTotalLength()))"""


def test_curves_are_drawn(browser: Browser, page: Path) -> None:
    browser.open(page)
    lengths = browser.value(DRAWN)
    assert len(lengths) == FIGURES
    assert all(length > 100 for figure in lengths for length in figure)
    assert len(lengths[0]) == 2  # training and validation


PLACE = """(() => {
  const svg = document.querySelector('figure.chart svg:not(.away)');
  const box = svg.getBoundingClientRect();
  return [box.left, box.top, box.width, box.height];
})()"""
SHOWN = """[...document.querySelectorAll('.tip')].filter(t => !t.hidden)
  .map(t => [...t.children].map(row => row.textContent))"""
DOTS = """[...document.querySelectorAll('figure.chart svg:not(.away) .dot')]
  .filter(d => d.style.display === 'block').map(d => d.getAttribute('class'))"""


@pytest.mark.parametrize("width", [400, 1400])
def test_the_pointer_shows_values(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    assert browser.value(SHOWN) == []
    browser.value("document.querySelector('figure.chart').scrollIntoView()")
    left, top, w, h = browser.value(PLACE)
    # the axis goes from 50 to 448 of 460, for the steps 0 to 100
    browser.move(left + w * (50 + 0.6 * 398) / 460, top + h / 2)
    (told,) = browser.value(SHOWN)
    assert told == ["step 60", "training 0.03333", "validation 0.3"]
    assert browser.value(DOTS) == ["dot c0", "dot c1"]
    browser.move(left + w * (50 + 0.8 * 398) / 460, top + h / 2)
    (told,) = browser.value(SHOWN)
    assert told == ["step 80", "training 0.045", "validation 0.1"]
    tip = "document.querySelector('.tip:not([hidden])').getBoundingClientRect()"
    assert browser.value(f"{tip}.left") >= 0 and browser.value(f"{tip}.right") <= width
    browser.move(left + w / 2, max(0, top - 30))
    assert browser.value(SHOWN) == []


def test_the_keyboard_shows_values(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.value("document.querySelector('figure.chart svg').focus()")
    browser.press("ArrowRight")
    assert browser.value(SHOWN)[0][0] == "step 5"
    browser.press("ArrowRight")
    assert browser.value(SHOWN)[0][0] == "step 10"
    browser.press("ArrowLeft")
    assert browser.value(SHOWN)[0][0] == "step 5"
    browser.press("Escape")
    assert browser.value(SHOWN) == []


def test_the_logarithmic_view(browser: Browser, page: Path) -> None:
    browser.open(page)
    seen = "getComputedStyle(document.querySelectorAll('figure.chart svg')[{}]).display"
    assert [browser.value(seen.format(i)) for i in (0, 1)] == ["block", "none"]
    browser.value("document.querySelector('button.log').click()")
    assert [browser.value(seen.format(i)) for i in (0, 1)] == ["none", "block"]
    left, top, w, h = browser.value(PLACE)
    browser.move(left + w * (50 + 0.6 * 398) / 460, top + h / 2)
    assert browser.value(SHOWN)[0][1] == "training 0.03333"
    # the dot is on the curve: as far as the path is at this step
    on_curve = """(() => {
      const svg = document.querySelector('figure.chart svg:not(.away)');
      const dot = svg.querySelector('.dot'), path = svg.querySelector('path.line');
      const x = +dot.getAttribute('cx'), y = +dot.getAttribute('cy');
      let best = 1e9;
      for (let l = 0; l <= path.getTotalLength(); l += 0.25) {
        const p = path.getPointAtLength(l);
        best = Math.min(best, Math.hypot(p.x - x, p.y - y));
      }
      return best;
    })()"""
    assert browser.value(on_curve) < 1.0
    assert browser.complaints() == []


def test_many_points_are_few_in_the_file(browser: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "long", steps=20_000, every=1)
    assert CliRunner().invoke(cli, ["report", str(run)]).exit_code == 0
    assert (run / "report.html").stat().st_size < 500_000
    browser.open(run / "report.html")
    assert browser.complaints() == []
    points = json.loads(
        browser.value("document.querySelector('figure.chart .values').textContent")
    )
    assert 300 < len(points["series"][0]["x"]) <= 700
