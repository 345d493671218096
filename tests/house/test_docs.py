"""The documentation: its links lead somewhere, its generated pages are what the code says, the README stays short."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert not missing


def test_the_generated_pages_are_what_the_code_says():
    script = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))
    for name, page in script["PAGES"].items():
        held = (script["FOLDER"] / name).read_text(encoding="utf-8")
        assert held == page(), "python docs/make_reference.py"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


def test_every_page_is_on_the_map():
    """From the index a reader reaches each page of the documentation."""
    seen: set[Path] = set()
    waiting = [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page not in seen:
            seen.add(page)
            links = re.findall(r"\]\(([^)\s#]+\.md)", page.read_text(encoding="utf-8"))
            waiting += [page.parent / link for link in links if not link.startswith("http")]
    assert {page for page in PAGES if page.parent != ROOT} <= seen


def test_the_site_takes_the_plots_from_where_they_lie():
    pytest.importorskip("mkdocs", reason="mkdocs comes with the extra `dev`")
    hook = runpy.run_path(str(ROOT / "docs" / "site.py"))["on_page_markdown"]
    assert hook("![a](../benchmarks/results/a.png)", None, None, None) == "![a](results/a.png)"
