"""The text of pages in the manner of real sites: the article, and nothing that stands around it."""

import pytest

from tests.unit.documents import read
from tests.unit.site_pages import OUT, PAGES, SitePage
from workers.ingest.formats.texts.html import render


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_the_text_of_a_page_is_what_a_reader_would_call_it(page: SitePage) -> None:
    text = read(page.html.encode(), "page.html").text
    lines = text.split("\n")
    assert [line for line in page.lines if line not in lines] == []
    assert [line for line in lines if OUT in line or any(one in line for one in page.gone)] == []


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_nothing_is_lost_where_all_of_the_page_is_to_be_text(page: SitePage) -> None:
    text = render(page.html, name="page.html").text
    assert [line for line in page.lines if line not in text] == []
