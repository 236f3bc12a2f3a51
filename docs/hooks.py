"""Makes the tables of the docs when the site is built: a page has `<!-- generated: NAME -->` in their place."""

import pathlib
import re
import sys

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # `benchmarks` is in the checkout only; MkDocs has this folder on the path

import tables  # noqa: E402

SHORT = re.compile(r"<code>([^<\n]{1,36})</code>")
MARK = re.compile(r"^<!-- generated: (.+) -->$", re.MULTILINE)


def on_files(files, config):
    """Adds the picture of ratios, which README shows too."""
    files.append(File.generated(config, "ratios.png", abs_src_path=str(ROOT / "benchmarks/results/ratios.png")))
    return files


def on_page_markdown(markdown, page, config, files):
    """Puts each table where its mark is; a KeyError for an unknown name stops the build."""
    return MARK.sub(lambda mark: tables.TABLES[mark[1]](), markdown)


def on_page_content(html, page, config, files):
    """Marks short inline code, which style.css keeps on one line: `--flag` would break after its dashes."""
    return SHORT.sub(r'<code class="short">\1</code>', html)
