"""Build the site of the documentation, without network.

    python docs/site/build.py [FOLDER]      (build/site by default)

The pages are those of ``docs/`` and those that ``reference.py`` makes. What
``docs/README.md`` lists is the nav. A link that leads nowhere, a page that isn't listed
and a formula that isn't understood end the build with status 1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import reference  # noqa: E402

DOCS = ROOT / "docs"
# where the site has what is outside docs/ in a checkout
ELSEWHERE = {
    "hostfiles/README.md": "reference/hostfiles.md",
    "CHANGELOG.md": "reference/changelog.md",
    "CONTRIBUTING.md": "reference/contributing.md",
    "README.md": "index.md",
}
GENERATED = {
    "reference/job.md": "every key of a job, with type and default",
    "reference/commands.md": "every command and option",
    "reference/files.md": "every source file, in a line",
    "reference/jobs.md": "the files of `configs/`",
    "reference/hostfiles.md": "lists of hosts",
    "reference/changelog.md": "what has changed",
    "reference/contributing.md": "how to work on it",
}
MARK = "<!-- generated pages -->\n"  # of docs/README.md: what it can't link to
SHIM = "https://unpkg.com/iframe-worker/shim"  # what the plugin offline asks for
LOADED = re.compile(
    r"<(?:script|img|iframe|source)[^>]+src=.?(?:https?:)?//[^>\s]+"
    r"|<link[^>]+rel=.?(?:stylesheet|preload|icon|preconnect)[^>]+//[^>\s]+"
)
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def main() -> int:
    site = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "site").resolve()
    work = site.with_name(site.name + "-pages")
    for folder in (work, site):
        shutil.rmtree(folder, ignore_errors=True)
    gather(work / "docs")
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    settings["nav"] = nav((DOCS / "README.md").read_text("utf-8"))
    settings |= {"docs_dir": "docs", "site_dir": "site"}
    for plugin in settings["plugins"]:
        if "mkdocstrings" in plugin:
            plugin["mkdocstrings"]["handlers"]["python"]["paths"] = [str(ROOT)]
    (work / "mkdocs.yml").write_text(yaml.safe_dump(settings, sort_keys=False))
    check_nav(settings["nav"], work / "docs")
    made = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        check=False,
    )
    if made.returncode:
        return made.returncode
    bring_home(work / "site")
    shutil.move(work / "site", site)
    shutil.rmtree(work)
    print(f"the site is in {site}: open index.html")
    return 0


def bring_home(site: Path) -> None:
    """Take the one script that pages would load from elsewhere out of this folder."""
    for path in site.rglob("*.html"):
        up = "../" * (len(path.relative_to(site).parts) - 1)
        text = path.read_text("utf-8").replace(SHIM, f"{up}assets/iframe-worker.js")
        path.write_text(text, "utf-8")
        if found := LOADED.findall(text):
            sys.exit(
                "expected pages that load nothing from elsewhere, received "
                f"{', '.join(found)} in {path.name}; put it into docs/site and mend "
                "bring_home"
            )


def gather(folder: Path) -> None:
    """Put all pages into a folder, with links as the site has them."""
    folder.mkdir(parents=True)
    for path in sorted(DOCS.rglob("*")):
        place = path.relative_to(DOCS)
        if path.is_dir() or place.parts[0] == "site":
            continue
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".md":
            shutil.copy(path, target)
            continue
        text = path.read_text("utf-8")
        if place.name == "README.md" and len(place.parts) == 1:
            target = folder / "index.md"
            rows = [f"| [{Path(p).stem}]({p}) | {GENERATED[p]} |\n" for p in GENERATED]
            text = text.replace(MARK, "".join(rows))
        target.write_text(relinked(text, path), "utf-8")
    (folder / "assets").mkdir(exist_ok=True)
    for name in ("site.css", "icon.svg", "iframe-worker.js"):
        shutil.copy(Path(__file__).with_name(name), folder / "assets")
    pages = {
        "job.md": reference.job_keys(),
        "commands.md": reference.commands(),
        "files.md": reference.files(),
        "jobs.md": reference.jobs(),
        **{f"python/{name}": text for name, text in reference.python_names().items()},
    }
    for source, place in ELSEWHERE.items():
        if place.startswith("reference/"):
            text = (ROOT / source).read_text("utf-8")
            pages[Path(place).name] = relinked(text, ROOT / source, "../")
    for name, text in pages.items():
        path = folder / "reference" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def relinked(text: str, page: Path, up: str | None = None) -> str:
    """Return a page with its links as they are in the site.

    What is in the checkout alone, such as a source file, loses its link.
    """
    if up is None:
        up = "../" * (len(page.relative_to(DOCS).parts) - 1)

    def change(match: re.Match[str]) -> str:
        words, target, anchor = match.groups()
        found = (page.parent / target).resolve()
        if not found.is_relative_to(ROOT):
            return match.group()
        place = str(found.relative_to(ROOT))
        if place == "docs/README.md":
            return f"[{words}]({up}index.md{anchor or ''})"
        if place.startswith("docs/"):
            return f"[{words}]({up}{place.removeprefix('docs/')}{anchor or ''})"
        if place in ELSEWHERE:
            return f"[{words}]({up}{ELSEWHERE[place]}{anchor or ''})"
        if re.fullmatch(r"configs/.*\.yaml", place):
            name = found.name.replace(".", "")
            return f"[{words}]({up}reference/jobs.md#{name})"
        return words

    parts = re.split(r"(^```.*?^```)", text, flags=re.S | re.M)
    parts[::2] = [LINK.sub(change, part) for part in parts[::2]]  # not in fences
    return "".join(parts)


def nav(index: str) -> list[dict[str, list[str]] | str]:
    """Return the nav that the tables of the index give: a section for each heading."""
    sections: dict[str, list[str]] = {}
    seen: set[str] = set()
    for heading, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", index, re.S | re.M):
        first = "\n".join(re.findall(r"^\| (.+?) \|", body, re.M))
        pages = re.findall(r"\]\(([^)#]+\.md)\)", first)
        sections[heading] = [page for page in pages if page not in seen]
        seen |= set(pages)
    names = [f"reference/python/{name}.md" for name in reference.MODULES]
    sections["Reference"] = [*GENERATED, *sections["Reference"]]
    entries: list[dict[str, list[str]] | str] = ["index.md"]
    for key, pages in sections.items():
        entries.append({key: pages})
        if key == "Reference":
            entries.append({"Python": names})
    return entries


def check_nav(entries: list[Any], folder: Path) -> None:
    """End the build where the nav and the pages differ."""
    sections = [entry for entry in entries if isinstance(entry, dict)]
    listed = {page for s in sections for pages in s.values() for page in pages}
    there = {str(path.relative_to(folder)) for path in folder.rglob("*.md")}
    there -= {"index.md"}
    if missing := sorted(there - listed):
        sys.exit(
            "expected every page in a table of docs/README.md, not found: "
            f"{', '.join(missing)}; add a row for each"
        )
    if unknown := sorted(listed - there):
        sys.exit(
            f"docs/README.md lists pages that aren't there: {', '.join(unknown)}; "
            "write them or take the rows out"
        )


if __name__ == "__main__":
    raise SystemExit(main())
