"""Hooks of mkdocs: pages and files outside docs/ join the site, and links to them become links within it.

On GitHub the pages link to each other as files of the repository. Here README.md is the first page, and a file that a
page links to, such as a record of a benchmark, is copied.
"""

import re
from pathlib import Path
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "dev/LOG.md": "log.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
_SOURCES = {page: source for source, page in PAGES.items()}
_TARGET = re.compile(r"(?P<open>\]\(|(?:src|href)=\")(?P<path>[^)\"#:\s]+)(?P<rest>[^)\"]*)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/, and the files that pages link to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    linked = {path for page in files.documentation_pages() for path in _linked(page)}
    for path in sorted(linked - set(PAGES)):
        if not path.startswith("docs/") and (ROOT / path).is_file():
            files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page with its links as links within the site."""
    home = _home(page.file)
    return _TARGET.sub(lambda match: match["open"] + _within_site(home, match["path"]) + match["rest"], markdown)


def _linked(page: File) -> list[str]:
    home = _home(page)
    return [_in_repository(home, match["path"]) for match in _TARGET.finditer(page.content_string)]


def _home(page: File) -> str:
    """Return the page's file, relative to the repository."""
    return _SOURCES.get(page.src_uri, f"docs/{page.src_uri}")


def _in_repository(home: str, path: str) -> str:
    return normpath(f"{home}/../{path}")


def _within_site(home: str, path: str) -> str:
    target = _in_repository(home, path)
    return PAGES.get(target, relpath(target, "docs") if target.startswith("docs/") else target)
