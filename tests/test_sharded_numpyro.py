"""One posterior over rows on several devices, and in several processes: the same draws, the same verdict, and rows that stay."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sharded_fits
from ports import free_port
from sharded_fits import COLUMNS, POINTS, ROWS

from benchmarks.scale.traffic import collectives
from pyro_dft.interface.arrays import Arrays
from pyro_dft.interface.recognition import fingerprints

SCRIPT = str(Path(sharded_fits.__file__))
ROOT = str(Path(SCRIPT).parent.parent)
# An evaluation gives the potential, and a gradient of one number for each weight and one for the noise.
NUMBERS = 1 + COLUMNS + 1


def environment(devices):
    """Variables of a process with so many devices. In double precision the order of sums moves nothing."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    paths = os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])
    own = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1", "PYTHONPATH": paths}
    return {**os.environ, **own}


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    """Fits on four devices of one process."""
    out = tmp_path_factory.mktemp("sharded") / "devices.json"
    command = [sys.executable, "-W", "ignore", SCRIPT, str(out), "devices"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(4), timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """The same fit in two processes with a device each."""
    folder = tmp_path_factory.mktemp("sharded")
    port = free_port()
    outs = [folder / f"{rank}.json" for rank in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", SCRIPT, str(out), "process", str(rank), port],
            stderr=subprocess.PIPE, text=True, env=environment(1),
        )
        for rank, out in enumerate(outs)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=300)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], errors
    return [json.loads(out.read_text()) for out in outs]


def same(fit, other):
    """Whether two fits took the same steps: another order of sums moves the last digits alone."""
    assert (fit["status"], fit["gradients"]) == (other["status"], other["gradients"])
    for name, draws in other["draws"].items():
        sd = np.std(draws, 0)
        assert np.max(np.abs(np.subtract(fit["draws"][name], draws)) / sd) < 1e-5
    return True


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows", "both", "copies"])
def test_draws_and_verdict_are_those_of_one_device(fits, name):
    assert fits["split"] == [[ROWS // 4, COLUMNS]] * 4
    assert fits["one"]["status"] == "converged"
    assert same(fits[name], fits["one"])


def check_posterior(fit):
    """That a fit is right: 300 draws, standard errors of a mean 0.058, of an sd 0.041 sds."""
    x, y = sharded_fits.data()
    draws = {site: np.asarray(own) for site, own in fit["draws"].items()}
    assert fit["status"] == "converged"
    noise = np.mean(draws.get("noise", 1.0))
    precision = x.T @ x / noise**2 + np.eye(COLUMNS) / 4
    mean, sd = np.linalg.solve(precision, x.T @ y / noise**2), np.diag(np.linalg.inv(precision)) ** 0.5
    w = draws["w"]
    assert np.max(abs(w.mean(0) - mean) / sd) < 4 * 0.058
    assert np.max(abs(w.std(0) / sd - 1)) < 4 * 0.041


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows", "minibatches"])
def test_the_posterior_is_right(fits, name):
    check_posterior(fits[name])


@pytest.mark.slow
def test_rows_stay_where_they_are_and_sums_alone_are_sent(fits):
    programs = fits["programs"]
    sent = {name: collectives(own["text"]) for name, own in programs.items()}
    assert sent["one"] == {}
    expected = {
        "rows": {"all-reduce": 8 * POINTS * NUMBERS},
        # Half of the points on each pair of devices; what comes out is put together.
        "both": {"all-reduce": 8 * POINTS // 2 * NUMBERS, "all-gather": 8 * POINTS * NUMBERS},
        # Of minibatches their rows travel: 50 for each point, with their data.
        "minibatches": {"all-reduce": 8 * POINTS * 50 * (COLUMNS + 1)},
    }
    for name, wanted in expected.items():
        assert sent[name].keys() == wanted.keys()
        # One more number may be summed that is the same for all points.
        assert all(0 <= sent[name][kind] - count <= 8 for kind, count in wanted.items())
    rows = 8 * ROWS * (COLUMNS + 1)
    points = 8 * POINTS * NUMBERS
    for name, devices in (("rows", 4), ("both", 2)):
        assert rows // devices < programs[name]["bytes"] < rows // devices + 2 * points


@pytest.mark.slow
def test_a_file_is_recognised_with_the_same_rows_on_one_device(fits):
    assert fits["loaded"]["status"] == "converged"
    assert fits["loaded"]["draws"] == fits["rows"]["draws"]


def test_processes_have_the_same_draws_of_the_whole_posterior(processes):
    assert [own["own rows"] for own in processes] == [[ROWS // 2], [ROWS // 2]]
    assert processes[0]["draws"] == processes[1]["draws"]
    check_posterior(processes[0])


@pytest.mark.slow
def test_processes_have_the_draws_and_verdict_of_one_device(fits, processes):
    assert same(processes[0], fits["one"])
    assert [own["likelihood"] for own in processes] == pytest.approx([fits["likelihood"]] * 2, rel=1e-4)


def test_processes_that_would_part_are_told_so(processes):
    for own in processes:
        assert "different random keys" in own["apart"]
        assert "give max_gradients" in own["timed"]
        assert f"'y' holds {ROWS // 2} NaN of {ROWS} values" in own["missing"]


class InPieces(Arrays):
    """An array in places of its own, for checksums."""

    def concatenate(self, arrays, axis=0):
        """Not used."""
        raise NotImplementedError

    copied = same = to_numpy = concatenate

    def in_pieces(self, value):
        """Three rows, then the others."""
        return iter([value[:3], value[3:]])


class Whole(InPieces):
    """The same array in one place."""

    def in_pieces(self, value):
        """All rows."""
        return iter([value])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, bool])
def test_checksums_do_not_depend_on_the_pieces(dtype):
    value = (np.arange(24.0).reshape(8, 3) % 5).astype(dtype)
    whole, parts = (fingerprints(((value,), {}), lambda x: None, kind()) for kind in (Whole, InPieces))
    assert whole == parts
    assert whole[0]["shape"] == [8, 3]
    assert fingerprints(((value[::-1],), {}), lambda x: None, InPieces()) != parts
