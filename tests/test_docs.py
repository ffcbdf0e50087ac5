"""Links from the documentation into the code point at the lines they quote."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
LINKS = [
    (document, *link)
    for document in sorted(DOCS.glob("*.md"))
    for link in re.findall(r"\[`([^`]+)`\]\((\.\./[^)#]+)#L(\d+)\)", document.read_text())
]


def test_there_are_links_to_check():
    assert len(LINKS) > 15


@pytest.mark.parametrize(("document", "code", "path", "line"), LINKS)
def test_a_link_into_the_code_points_at_the_line_it_quotes(document, code, path, line):
    lines = (document.parent / path).read_text().splitlines()
    places = [number for number, text in enumerate(lines, 1) if code in text]
    assert int(line) in places, f"{document.name}: `{code}` is now at {places} of {path}"
