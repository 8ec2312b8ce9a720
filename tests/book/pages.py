"""The pages of the project as the tests read them: headings, links, code blocks."""

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TOP = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
NOT_RUN = re.compile(r"<!-- not run: (\S.*\S) -->")


def pages(root=ROOT):
    """Every page that a reader may come across."""
    return [root / name for name in TOP] + sorted((root / "docs").rglob("*.md"))


@dataclass
class Block:
    """A fenced code block: its info string, its text, the line it begins on, and why it is not run."""

    info: str
    text: str
    line: int
    not_run: str | None


def split(text):
    """The lines of prose, each with its number, and the code blocks."""
    prose, blocks, fence = [], [], None
    for number, line in enumerate(text.splitlines(), 1):
        opening = re.match(r"^ *(```+|~~~+)(.*)$", line)
        if fence is None and opening:
            before = next((said for _, said in reversed(prose) if said.strip()), "")
            why = NOT_RUN.fullmatch(before.strip())
            fence, block = opening[1], Block(opening[2].strip(), "", number, why and why[1])
        elif fence is not None and line.strip() == fence:
            blocks.append(block)
            fence = None
            prose.append((number, ""))
        elif fence is not None:
            block.text += line + "\n"
        else:
            prose.append((number, line))
    assert fence is None, f"the code block of line {block.line} does not end"
    return prose, blocks


def anchors(text):
    """The ids that mdBook gives to the headings of a page; GitHub's are the same for these titles."""
    found, seen = [], {}
    for _, line in split(text)[0]:
        heading = re.match(r"^#{1,6} +(.*?)(?: +#+)?$", line)
        if not heading:
            continue
        title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).replace("`", "").replace("*", "")
        base = "".join(
            char.lower() if char.isalnum() or char in "_-" else "-" if char.isspace() else "" for char in title.strip()
        )
        count = seen.get(base, 0)
        seen[base] = count + 1
        found.append(f"{base}-{count}" if count else base)
    return found


def links(text):
    """(line, target) of every link in the prose; code spans are not read."""
    for number, line in split(text)[0]:
        plain = re.sub(r"`[^`]*`", "``", line)
        yield from ((number, target) for target in re.findall(r"\]\(([^)\s]+)\)", plain))
        yield from ((number, target) for target in re.findall(r"^\[[^\]]+\]: (\S+)$", plain))


def dead_links(page, root=ROOT):
    """What is wrong with the links of a page: a file that is not there, or a heading that its file does not have."""
    faults = []
    for number, target in links(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        where = f"{page.relative_to(root)}:{number}: {target}"
        if not path.exists() or not path.is_relative_to(root):
            faults.append(f"{where}: no such file")
        elif anchor and (path.suffix != ".md" or anchor not in anchors(path.read_text())):
            faults.append(f"{where}: no such heading")
    return faults


class _Html(HTMLParser):
    def __init__(self):
        super().__init__()
        self.ids, self.targets = set(), []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.targets.append(value)


def read_html(path):
    parser = _Html()
    parser.feed(path.read_text())
    return parser


def dead_html_links(site):
    """What is wrong with the links of a built site."""
    read = {path: read_html(path) for path in sorted(site.rglob("*.html"))}
    faults = []
    for path, page in read.items():
        # 404.html is served for any address, and print.html has every chapter at once.
        if path.name in ("404.html", "print.html", "toc.html"):
            continue
        for target in page.targets:
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            there = (path.parent / name).resolve() if name else path
            if not there.is_file():
                faults.append(f"{path.relative_to(site)}: {target}: no such file")
            elif anchor and there in read and anchor not in read[there].ids:
                faults.append(f"{path.relative_to(site)}: {target}: no such heading")
    return faults
