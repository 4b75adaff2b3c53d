"""Where the documentation is, for the messages that point into it."""

from __future__ import annotations

# The same as [project.urls] in pyproject.toml, which a test compares.
DOCUMENTATION = "https://pyro-dft.readthedocs.io"


def page(name: str, section: str = "") -> str:
    """Address of a page of the documentation.

    Args:
        name: Of the page, such as "diagnostics": `docs/diagnostics.md`.
        section: Label of a section there, such as "alarm-drift".
    """
    return f"{DOCUMENTATION}/en/latest/{name}.html" + (f"#{section}" if section else "")


def alarm(name: str) -> str:
    """Address of the section on one of the alarms of `pyro_dft.judging.verdict`."""
    return page("diagnostics", "alarm-" + name.replace(" ", "-").replace("_", "-"))
