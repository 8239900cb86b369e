"""README and docs: the target of every relative link exists, heading included."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "mod_edge").rglob("*.md")),
]
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)]*))?\)")
INCLUDED = re.compile(r'^--8<-- "([^":]+)(?::([^"]+))?"$', re.MULTILINE)
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def text_of(page):
    """The page with what it includes, without code blocks.

    `make docs` cuts docs/ off the links that index.md includes from the README.
    """

    def included(match):
        text = (ROOT / match[1]).read_text(encoding="utf-8")
        if match[2]:
            _, text, _ = re.split(rf"<!-- --8<-- \[(?:start|end):{match[2]}\] -->\n", text)
        return text.replace("](docs/", "](")

    return CODE.sub("", INCLUDED.sub(included, page.read_text(encoding="utf-8")))


def anchors_of(page):
    """The anchors of the page's headings, as GitHub and the site's generator name them."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_has_a_target(page):
    targets = [target for target, _ in LINK.findall(text_of(page))]
    relative = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in relative if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_to_a_heading_has_one(page):
    links = [each for each in LINK.findall(text_of(page)) if each[1] and ":" not in each[0]]
    pages = {target: page.parent / target if target else page for target, _ in links}
    known = {target: anchors_of(each) for target, each in pages.items() if each.suffix == ".md"}
    assert [each for each in links if each[1] not in known.get(each[0], ())] == []
