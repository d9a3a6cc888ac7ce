"""Pages and pictures of the site that live elsewhere."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the plots of experiments/results and the pages of the root folder."""
    for path in sorted((ROOT / "experiments/results").glob("*/*.png")):
        uri = path.relative_to(ROOT / "experiments").as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    for uri, name in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The plots lie beside the pages on the site, and not in a folder of the clone."""
    return markdown.replace("](../experiments/results/", "](results/")
