"""The page: one file that asks nobody for anything."""

import json
import re
from html.parser import HTMLParser

import pytest

from dynosim.report import data, html, page
from report.fake_study import make_study

VOID = {"meta", "link", "input", "br"}


class _Reader(HTMLParser):
    """Collects addresses, ids, the text of scripts, and whether every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.scripts: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.ids += [named["id"] or ""] if "id" in named else []
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "action", "data", "poster")]
        if tag not in VOID:
            self.open.append(named.get("id") or tag if tag == "script" else tag)

    def handle_endtag(self, tag: str) -> None:
        closed = self.open.pop()
        assert tag == "script" or closed == tag

    def handle_data(self, text: str) -> None:
        if self.open:
            self.scripts[self.open[-1]] = self.scripts.get(self.open[-1], "") + text


def _read(text: str) -> _Reader:
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader


@pytest.fixture(scope="module")
def report() -> str:
    return html(make_study(60), {"study": "<b>", "python": "3.11"})


def test_the_page_parses_and_closes_every_element(report: str) -> None:
    reader = _read(report)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))


def test_the_page_fetches_nothing(report: str) -> None:
    reader = _read(report)
    assert [address for address in reader.addresses if not address.startswith(("data:", "#"))] == []
    own = report.replace(reader.scripts["plotly"], "")
    assert not re.findall(r"https?://", own)
    assert not re.findall(r"@import|url\(", own)


def test_the_data_come_back_unchanged_even_with_markup_in_them(report: str) -> None:
    study = make_study(60)
    embedded = json.loads(_read(report).scripts["data"])
    assert embedded.pop("provenance") == {"study": "<b>", "python": "3.11"}
    assert embedded.pop("timelines") == {}  # nothing in this study scales
    assert embedded == json.loads(json.dumps(data(study)))
    assert any("</script>" in trial["reason"] for trial in embedded["trials"])


def test_every_element_that_the_script_asks_for_exists(report: str) -> None:
    reader = _read(report)
    asked = set(re.findall(r'\bel\("([\w-]+)"\)', reader.scripts["script"]))
    assert asked - {"numbers", "cases", "changes"} <= set(reader.ids)  # these it makes itself


def test_the_live_page_has_an_address_and_no_data() -> None:
    reader = _read(page(None, live_url="/v1/studies/abc/page"))
    assert json.loads(reader.scripts["data"]) is None
    assert 'const LIVE = "/v1/studies/abc/page";' in reader.scripts["script"]


def test_the_page_names_no_affiliation(report: str) -> None:
    assert "not affiliated with NVIDIA" in report


@pytest.mark.parametrize("trials", [0, 1, 4])
def test_the_first_trials_of_a_study_make_a_page(trials: int) -> None:
    assert len(json.loads(_read(html(make_study(trials))).scripts["data"])["trials"]) == trials
