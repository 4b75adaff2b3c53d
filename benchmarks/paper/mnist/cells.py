"""Finished parts of the experiment, kept as JSON files: a part is made again only when its settings change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def key(settings: Mapping[str, Any]) -> str:
    """Ten characters that change with the settings."""
    return hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:10]


def cell(
    folder: Path, name: str, settings: Mapping[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The result of ``make``, from ``folder`` where it has been made with these settings before."""
    path = folder / f"{name}-{key(settings)}.json"
    if path.exists():
        return json.loads(path.read_text())
    result = make()
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({**result, "settings": dict(settings)}))
    part.replace(path)  # a kill while writing leaves nothing half written
    return json.loads(path.read_text())
