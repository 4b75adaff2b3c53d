"""What is released says one version in all places, and the check of built files sees what is wrong with them."""

from __future__ import annotations

import importlib.util
import io
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks import table
from pyro_dft import __version__

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("release", ROOT / "tools" / "release.py")
release = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release)


def test_version_changelog_and_citation_agree():
    assert release.version() == __version__
    assert release.disagreements() == []


def test_disagreements_are_seen(tmp_path, monkeypatch):
    (tmp_path / "pyro_dft").mkdir()
    (tmp_path / "pyro_dft" / "_version.py").write_text('__version__ = "1.2.3.dev0"\n')
    (tmp_path / "CITATION.cff").write_text("version: 1.2.2\n")
    (tmp_path / "CHANGELOG.md").write_text("## [1.2.2] - 2020-01-01\n\n- a line\n")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    assert len(release.disagreements()) == 3
    with pytest.raises(SystemExit, match=r"no section \[1.2.3\]"):
        release.notes("1.2.3")


def test_the_notes_are_the_section_of_the_version():
    notes = release.notes(__version__)
    assert notes.startswith("### ")
    assert "\n## " not in notes
    assert "DFTKernel" in notes


def test_each_section_of_the_changelog_has_each_heading_once_and_in_order():
    order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for of in re.findall(r"^## \[(.+?)\]", text, re.M):
        headings = re.findall(r"^### (.+)$", release.notes(of), re.M)
        assert headings == sorted(set(headings), key=order.index), of


def test_what_a_built_file_lacks_or_has_too_much_is_named(tmp_path):
    files = [str(p.relative_to(ROOT)) for p in (ROOT / "pyro_dft").rglob("*.py")] + ["pyro_dft/py.typed"]
    root = f"pyro_dft-{__version__}/"
    beside = [
        *release.BESIDE,
        *(f"{folder}/x" for folder in ("tests", "benchmarks", "docs", "examples", "tools")),
    ]

    def packed(modules, besides):
        with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as archive:
            for name in [*modules, *besides]:
                archive.addfile(tarfile.TarInfo(root + name), io.BytesIO())
        with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
            for name in modules:
                archive.writestr(name, "")
            stated = f"Version: {__version__}\nLicense-Expression: Apache-2.0\n"
            archive.writestr(f"pyro_dft-{__version__}.dist-info/METADATA", stated)
        return release.contents(tmp_path / "s.tar.gz", tmp_path / "w.whl")

    assert packed(files, beside) == []
    found = packed([*files[1:], "pyro_dft/extra.py"], beside[1:])
    assert f"the wheel lacks {files[0]}" in found
    assert "the sdist holds pyro_dft/extra.py, which is not there" in found
    assert "the sdist lacks README.md" in found
    assert len(found) == 5


def test_the_examples_that_are_tried_are_the_readmes():
    for heading, module in (("First example", "pyro_dft"), ("With NumPyro", "pyro_dft.numpyro")):
        assert f"from {module} import DFT\n" in release.example(heading)


def test_the_table_goes_between_the_marks_of_the_readme(tmp_path):
    readme = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    readme.write_text(text, encoding="utf-8")
    row = {
        "model": "m",
        "d": 3,
        "worst_mean": 0.031,
        "sd_low": 0.98,
        "sd_high": 1.02,
        "seconds": 7.4,
        "said": "suspect",
    }
    rows = [row | {"method": "nuts", "seconds": 30.2, "said": ""}, row | {"method": "dft-refined"}]
    table.into_readme(rows, readme)
    table.into_readme(rows, readme)  # again: in the place of the first
    changed = readme.read_text(encoding="utf-8")
    assert changed.count("| m (3) | 0.03, 0.98–1.02 | 0.03, 0.98–1.02 | 30 | 7 | suspect |") == 1
    begin, end = "table against NUTS: begin -->", "<!-- table against NUTS: end"
    assert changed.split(begin)[0] == text.split(begin)[0]
    assert changed.split(end)[1] == text.split(end)[1]
    readme.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="lacks the marks"):
        table.into_readme(rows, readme)
