"""Hook of mkdocs.yml: links from docs/ to files outside of it lead to the repository.

GitHub resolves `../README.md` by itself; the site has no such page. The address of the repository is `repo_url` in
mkdocs.yml. Without one, the text stays and the link goes.
"""

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<!!)\[(?P<text>[^][]*)\]\((?P<target>\.\./[^)\s]*)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_others: Any) -> str:
    """Return the page's text with absolute links in the place of those that leave docs/. mkdocs calls this."""
    return replace_outside_links(markdown, page.file.src_uri, config.repo_url)


def replace_outside_links(markdown: str, page: str, repository: str | None) -> str:
    """Return the text of `page`, a path in docs/, with links to files outside docs/ led to `repository`."""

    def absolute(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link["target"]))
        if path.startswith("docs/"):
            return link[0]
        return f"[{link['text']}]({repository.rstrip('/')}/blob/main/{path})" if repository else link["text"]

    return LINK.sub(absolute, markdown)
