"""Links: messages point at sections of the documentation that exist, and so do the pages at one another."""

import pkgutil
import re
import tomllib
from pathlib import Path

import pytest
from backends import BACKENDS, Y

from pyro_dft import FidelityWarning, ModelError, NotFittedError, SettingsError, StorageError, links
from pyro_dft.judging import verdict
from pyro_dft.judging.alarms import ALARMS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    [*DOCS.glob("*.md"), *DOCS.glob("notebooks/*.md"), *ROOT.glob("*.md"), *DOCS.glob("results/*.md")]
)
CODE = re.compile(
    r"^(`{3,}|~{3,})(?!\{(?:note|tip|warning|tab-set|tab-item|grid|card)).*?^\1\s*$", re.M | re.S
)


def prose(path):
    """A page without its blocks and spans of code."""
    return re.sub(r"`[^`\n]*`", "", CODE.sub("", path.read_text(encoding="utf-8")))


def anchors(path):
    """What `page.md#...` may name: explicit labels, and headings as GitHub and MyST slug them."""
    text = CODE.sub("", path.read_text(encoding="utf-8"))
    found = set(re.findall(r"^\(([\w-]+)\)=$", text, re.M))
    for heading in re.findall(r"^#+ +(.+?)\s*$", text, re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-")
        found.add(slug)
    return found


def relative_links(path):
    for target in re.findall(r"\]\(<?([^)\s>]+)>?\)", prose(path)):
        if not re.match(r"[a-z]+:", target):
            yield target


def test_there_are_pages():
    assert DOCS / "index.md" in PAGES
    assert sum(len(list(relative_links(page))) for page in PAGES) > 50


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links(page):
    broken = []
    for target in relative_links(page):
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


def section(address):
    """File and label of an address that `pyro_dft.links` made."""
    pattern = re.escape(links.PAGES).replace(re.escape("{page}"), r"(\w+)")
    found = re.fullmatch(pattern + r"#?([\w-]*)", address)
    assert found is not None, address
    return DOCS / f"{found[1]}.md", found[2]


def test_the_address_of_the_pages_is_in_one_place():
    """Either the repository's own files, or what the project's metadata say as well."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = project.get("urls", {}).get("Documentation")
    if stated is None:
        assert (ROOT / links.page("diagnostics")).is_file()
    else:
        assert links.page("diagnostics").startswith(stated)


def test_every_alarm_has_its_section():
    names = {alarm.name for alarm in ALARMS}
    assert len(names) >= 14
    for name in names:
        page, label = section(links.alarm(name))
        assert f"({label})=" in page.read_text(encoding="utf-8"), name


@pytest.mark.parametrize("error", [ModelError, NotFittedError, SettingsError, StorageError])
def test_errors_end_with_their_page(error):
    raised = error("what is wrong")
    assert str(raised) == "what is wrong"
    page, label = section(raised.__notes__[-1].split()[-1])
    assert f"({label})=" in page.read_text(encoding="utf-8")


def test_the_page_of_a_printed_report_exists():
    report = verdict.Diagnostics(status="converged", warnings=[], alarms=[])
    page, _ = section(str(report).split()[-1])
    assert page.exists()


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
def test_a_doubtful_fit_names_the_section_of_its_first_alarm(backend):
    dft = backend.dft("improper")
    with pytest.warns(FidelityWarning, match="the fit is failed") as warned:
        backend.run(dft, backend.array(Y))
    address = str(warned[-1].message).split()[-1]
    assert address == links.alarm(dft.diagnostics()["alarms"][0])


def test_the_reference_names_modules_and_names_that_exist_once():
    named = {}
    for page in (DOCS / "api").glob("*.md"):
        for target in re.findall(r"^\.\. auto\w+:: (\S+)", page.read_text(encoding="utf-8"), re.M):
            assert target not in named, f"{target} is in {page.name} and in {named[target]}"
            named[target] = page.name
    assert len(named) > 40
    for target in named:
        pkgutil.resolve_name(target)  # raises where there is none
