"""Configuration of `make serve-book`: what book/_config.yml says, for Sphinx itself."""
from pathlib import Path

from jupyter_book.config import get_final_config

ROOT = Path(__file__).resolve().parent.parent.parent
config, _ = get_final_config(
    user_yaml=ROOT / "book" / "_config.yml", sourcedir=ROOT,
    cli_config={"latex_individualpages": False, "external_toc_path": str(ROOT / "_toc.yml")})
for name in ("html_static_path", "templates_path", "bibtex_bibfiles"):
    config[name] = [str(ROOT / path) for path in config[name]]
config["html_favicon"] = str(ROOT / config["html_favicon"])
# For search engines only, and slow to import: the first loads matplotlib.
unneeded = {"sphinxext.opengraph", "sphinx_sitemap"}
config["extensions"] = [name for name in config["extensions"] if name not in unneeded]
globals().update(config)
