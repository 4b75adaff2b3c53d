"""`fit_many`, for both front doors."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any

from tqdm.auto import tqdm

from pyro_dft import links
from pyro_dft.errors import FidelityWarning, ModelError, SettingsError, warn
from pyro_dft.many.data import DataSets, checksum, rows_of
from pyro_dft.many.executors import Crew, Job, work
from pyro_dft.many.fitting import forget
from pyro_dft.many.padding import sizes_of
from pyro_dft.many.results import ManyFits
from pyro_dft.many.store import Folder, Memory, Store
from pyro_dft.settings import Settings, check_count

# Settings unless others are given: fewer draws of each posterior, and no networks, which take as long for one posterior that
# chains do not settle as chains for hundreds that they do.
DEFAULTS = {"num_draws": 1000, "train": "never"}
# Data sets of a slice, which is fitted by one worker, and kept in one file.
SLICE = 100


def fit_many(
    framework: str,
    model: Callable[..., Any],
    data: Any,
    *,
    shared: dict[str, Any] | None = None,
    mask: str | None = None,
    num_chains: int = 1,
    folder: str | os.PathLike[str] | None = None,
    executor: Executor | Callable[[], Executor] | None = None,
    retries: int = 3,
    slice_size: int = SLICE,
    part: tuple[int, int] | None = None,
    disable_progbar: bool = False,
    settings: Settings | None = None,
    options: dict[str, Any] | None = None,
    **overrides: Any,
) -> ManyFits:
    """See `fit_many` of either front door; `options` are further ones of their `DFT`."""
    for name, value, least in (
        ("slice_size", slice_size, 1),
        ("num_chains", num_chains, 1),
        ("retries", retries, 0),
    ):
        check_count(name, value, least, SettingsError)
    own, seed = _settings(settings, overrides)
    sets = DataSets(data, shared, mask)
    call = {
        "framework": framework, "settings": own.to_json(), "seed": seed, "num_chains": num_chains, "mask": mask,
        "slice_size": slice_size, "model": getattr(model, "__qualname__", type(model).__name__),
        "slices": None if sets.count is None else -(-sets.count // slice_size),
    }  # fmt: skip
    call, token = json.loads(json.dumps(call, default=str)), secrets.token_hex(8)
    arguments = {
        "framework": framework, "model": model, "options": {"settings": own, "num_chains": num_chains, **(options or {})},
        "seed": seed, "mask": mask, "sizes": _sizes(sets), "token": token,
    }  # fmt: skip
    store: Store = Memory() if folder is None else Folder(folder, call)
    where = None if folder is None else os.fspath(folder)

    def jobs() -> Iterator[Job]:
        for number, content in _slices(sets, slice_size, part):
            sums = [checksum(each) for _, each in content]
            if store.holds(number, sums):
                bar.update(len(content))
            else:
                yield Job(number, {**arguments, "sets": content}, sums, where, call)

    total, quiet = sets.count if part is None else None, disable_progbar or "CI" in os.environ
    with tqdm(total=total, disable=quiet, unit="posterior", desc="fit_many") as bar:
        done: Iterator[tuple[Job, Any]] = ((job, work(job)) for job in jobs())
        if executor is not None:
            done = Crew(executor, retries).run(jobs())
        lost = _kept(done, store, bar)
    forget(token)
    fits = ManyFits(store, framework)
    _warn(fits, lost)
    return fits


def _kept(done: Iterator[tuple[Job, Any]], store: Store, bar: Any) -> dict[int, str]:
    """Writes slices as they are done; returns those that no worker could do, with the reason."""
    lost: dict[int, str] = {}
    for job, records in done:
        if job.lost and isinstance(store, Folder):  # not written, so that another call does it
            lost[job.number] = job.lost
        elif records is not None:
            store.write(job.number, records, job.sums)
        bar.update(len(job.sums))
    return lost


def _settings(settings: Settings | None, overrides: dict[str, Any]) -> tuple[Settings, int]:
    """Settings without a seed, and the seed."""
    if settings is not None and overrides:
        raise SettingsError(f"give either settings or single ones ({', '.join(sorted(overrides))}), not both")
    own = settings or Settings.from_kwargs(**{**DEFAULTS, **overrides})
    own.check_use()
    if own.max_seconds is not None:
        raise SettingsError("max_seconds: fits that wait for each other cannot be timed; give max_gradients")
    return dataclasses.replace(own, seed=None), own.seed or 0


def _slices(
    sets: DataSets, size: int, part: tuple[int, int] | None
) -> Iterator[tuple[int, list[tuple[int, Any]]]]:
    """Number and content of each slice of a part, or of all."""
    every = iter(enumerate(sets))
    for number in itertools.count():
        own = list(itertools.islice(every, size))
        if not own:
            if not number:
                raise ModelError("there are no data sets")
            return
        if part is None or number % part[1] == part[0] - 1:
            yield number, own


def _sizes(sets: DataSets) -> list[int] | None:
    """What data sets are padded to; None where they are not all known."""
    if sets.mask is None or sets.count is None:
        return None
    return sizes_of([rows_of(own) for own in sets])


def _warn(fits: ManyFits, lost: dict[int, str]) -> None:
    if lost:
        number, why = next(iter(lost.items()))
        warn(
            f"slices {sorted(lost)} are missing, as no worker could do them (slice {number}: {why}); the same call goes on "
            "with them",
            FidelityWarning,
        )
    doubtful = fits.failed()
    if not doubtful:
        return
    counts, first = fits.counts, next(iter(doubtful))
    why = doubtful[first][0] if doubtful[first] else ""
    warn(
        f"{len(doubtful)} of {len(fits)} posteriors are not converged ({counts['suspect']} suspect, {counts['failed']} failed); "
        f"failed() says why of each. Posterior {first}: {why}\nWhat it means, and what to try: {links.page('diagnostics')}",
        FidelityWarning,
    )
