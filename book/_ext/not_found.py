"""Write 404.html, which a host shows for any address that does not exist.

The browser resolves its links against that missing address, so they are absolute, and its styles
stand in the page.
"""
from urllib.parse import urljoin


def pages(app):
    def link(name: str) -> str:
        return urljoin(app.config.html_baseurl, app.builder.get_target_uri(name))

    parts = [(tree.caption, [(link(name), app.env.titles[name].astext()) for name in tree.items])
             for tree in app.env.external_site_map.root.subtrees]
    yield "404", {"parts": parts, "home": app.config.html_baseurl, "search": link("search")}, \
        "404.html"


def setup(app):
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
