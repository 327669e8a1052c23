"""Every link of a document leads somewhere: in the source, and where the documents are installed."""
import json
import posixpath
import re
from pathlib import PurePosixPath

import pytest
from harness import ROOT, build_folder

pytestmark = pytest.mark.sources

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("client/python/*.md")])
PAGES = sorted(ROOT.glob("docs/*.scd"))


def without_code(text):
    """What looks like a link in a program is none."""
    return re.sub(r"^```.*?^```$|`[^`\n]*`(?!\])", "", text, flags=re.M | re.S)


def links(text):
    """(path, anchor) of each link that leads to no other server."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if not re.match(r"\w+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(text):
    """What GitHub calls the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check(text, read, exists):
    """read(path): the document there. exists(path): whether there is something, a file or a folder."""
    for path, anchor in links(text):
        assert not path or exists(path), f"it links to {path}, which is not there"
        if anchor:
            assert anchor in anchors(read(path) if path else text), f"it links to {path}#{anchor}: no such heading"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_in_the_source(document):
    folder = document.parent
    check(document.read_text(encoding="utf-8"), lambda path: (folder / path).read_text(encoding="utf-8"),
          lambda path: (folder / path).exists())


def installed():
    """Where each file will be, below the prefix, and which file it is now."""
    plan = json.loads((build_folder() / "meson-info" / "intro-install_plan.json").read_text(encoding="utf-8"))
    files = {}
    for kind in plan.values():
        for source, how in kind.items():
            place = re.sub(r"^\{(datadir|mandir|bindir|includedir)\}", lambda m: {
                "datadir": "share", "mandir": "share/man", "bindir": "bin", "includedir": "include"}[m[1]],
                how["destination"])
            files[place] = source
    return files


def is_installed(files, path):
    return path in files or any(place.startswith(path + "/") for place in files)


def test_where_they_are_installed():
    files = installed()
    documents = [place for place in files if place.endswith(".md")]
    assert "share/doc/rocmforge/wire.md" in documents and "share/doc/rocmforge/python.md" in documents
    for place in documents:
        folder = PurePosixPath(place).parent

        def at(path, folder=folder):
            return posixpath.normpath(str(folder / path))

        def read(path, at=at):
            with open(files[at(path)], encoding="utf-8") as file:
                return file.read()

        try:
            check(read(PurePosixPath(place).name), read, lambda path, at=at: is_installed(files, at(path)))
        except AssertionError as error:
            raise AssertionError(f"{place}: {error}") from error


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_manual_pages_name(page):
    """Documents, by their names or paths: they are installed with the page."""
    files = installed()
    text = page.read_text(encoding="utf-8").replace("\\_", "_")
    for name in re.findall(r"_([a-z][\w.]*\.(?:md|varlink))_", text):
        assert f"share/doc/rocmforge/{name}" in files, f"{name} is not installed"
    for path in re.findall(r"/usr/(share/doc/[a-z/.-]*[a-z])", text):
        assert is_installed(files, path), f"/usr/{path} is not installed"
