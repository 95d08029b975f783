"""What the code cites is in the tree: no document that users do not have, and no section that the
page on methods lacks.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = re.compile(
    r"\bpapers[ _](\d|crosslingual|systems)|\b(design|section) \d|\[(OURS|SRC|ABS|TXT|PAPER|CHECKED)\b|(facts|house|anchors|papers)\.md"
)


def _texts() -> dict[str, str]:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    found = [path for name in names if (path := ROOT / name).suffix in {".py", ".md", ".yaml", ".ipynb", ".j2"} and path.is_file()]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in found if path != Path(__file__).resolve()}


def test_no_document_is_cited_that_is_not_in_the_tree():
    texts = _texts()
    assert len(texts) > 300
    assert {name: found[0] for name, text in texts.items() if (found := ELSEWHERE.search(text))} == {}
    pages = {(name, page) for name, text in texts.items() for page in re.findall(r"docs/[a-z_]+\.(?:md|py)", text)}
    assert {(name, page) for name, page in pages if not (ROOT / page).is_file()} == set()


def test_every_section_on_methods_that_is_cited_exists():
    there = set(re.findall(r"^##+ (\d+(?:\.\d+)?)", (ROOT / "docs" / "methods.md").read_text(), re.M))
    assert len(there) > 30
    cited = {
        (name, section)
        for name, text in _texts().items()
        for run in re.findall(r"docs/methods\.md ((?:\d+(?:\.\d+)?(?:, | to | and )?)+)", text)
        for section in re.findall(r"\d+(?:\.\d+)?", run)
    }
    assert len(cited) > 50
    assert {(name, section) for name, section in cited if section not in there} == set()


def test_every_module_that_the_page_on_methods_names_exists():
    text = (ROOT / "docs" / "methods.md").read_text()
    for path in re.findall(r"`(raysere/[\w/]+\.py|raysere/[\w/]+/)`", text):
        assert (ROOT / path).exists(), path
