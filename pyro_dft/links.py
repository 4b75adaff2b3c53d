"""Where the documentation is, for the messages that point into it."""

from __future__ import annotations

# The one place: files of the repository (and of the source distribution). Where the pages of `make docs` are served, put their
# address here, as "https://.../{page}.html", and the same under [project.urls] in pyproject.toml; a test compares the two.
PAGES = "docs/{page}.md"


def page(name: str, section: str = "") -> str:
    """Address of a page of the documentation.

    Args:
        name: Of the page, such as "diagnostics": `docs/diagnostics.md`.
        section: Label of a section there, such as "alarm-drift".
    """
    return PAGES.format(page=name) + (f"#{section}" if section else "")


def alarm(name: str) -> str:
    """Address of the section on one of the alarms of `pyro_dft.judging.verdict`."""
    return page("diagnostics", "alarm-" + name.replace(" ", "-").replace("_", "-"))
