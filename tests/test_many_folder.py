"""Many posteriors in a folder: killed and resumed, in parts, on workers that die. Nothing is lost, and nothing is there twice."""

import functools
import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import many_spec
import numpy as np
import pytest
from backends import BACKENDS

from pyro_dft.errors import StorageError
from pyro_dft.experimental import grouped
from pyro_dft.interface import storage
from pyro_dft.many import executors
from pyro_dft.many.__main__ import main
from pyro_dft.numpyro import fit_many, load_many

OPTIONS = grouped(
    {"num_draws": 100, "train": "never", "compile": "never", "slice_size": 2, "disable_progbar": True}
)
SPEC = str(Path(many_spec.__file__))


def alike(fits, others):
    """Whether all posteriors are there once, in order, with the same draws."""
    assert fits.indices == others.indices
    for i in others.indices:
        a, b = fits.get_samples(i)["mu"], others.get_samples(i)["mu"]
        assert a.shape == b.shape
        assert np.median(np.abs(a - b)) < 1e-4
    return True


@pytest.fixture(scope="module")
def whole():
    """All posteriors of the file, at once and in memory."""
    return fit_many(many_spec.model, many_spec.data(), **many_spec.options)


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_a_call_that_was_killed_goes_on_from_what_is_there(backend, tmp_path, monkeypatch):
    y, model = many_spec.data()[:5], backend.models.known_mean
    fit, real = backend.package.fit_many, executors.fit_slice
    done = []

    def dies(**arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append([row for row, _ in arguments["sets"]])
        return real(**arguments)

    monkeypatch.setattr(executors, "fit_slice", dies)
    with pytest.raises(KeyboardInterrupt):
        fit(model, y, folder=tmp_path, **OPTIONS)
    partly = backend.package.load_many(tmp_path)
    assert partly.indices == [0, 1, 2, 3]
    assert partly.missing() == [2]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(executors, "fit_slice", lambda **arguments: done.append(3) or real(**arguments))
    fits = fit(model, y, folder=tmp_path, **OPTIONS)
    assert done == [[0, 1], [2, 3], 3]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert fits.indices == [0, 1, 2, 3, 4]
    assert fits.missing() == []
    for i, own in enumerate(y):
        assert abs(float(fits.get_samples(i)["mu"].mean()) - own.sum() / 3.01) < 4 * 3.01**-0.5 / np.sqrt(50)
    again = backend.package.load_many(tmp_path)
    assert alike(again, fits)
    assert again.framework == backend.name
    assert again.to_inference_data(4).posterior["mu"].shape == (1, 100)
    # Early versions had the settings of experiments beside the others.
    path = tmp_path / "slice-000000.safetensors"
    arrays, header = storage.load(path)
    settings = header["call"]["settings"]
    settings |= settings.pop("experimental")
    storage.save(path, arrays, {name: header[name] for name in ("records", "sums", "call")})
    assert alike(fit(model, y, folder=tmp_path, **OPTIONS), fits)
    assert done == [[0, 1], [2, 3], 3]
    for other in ({"num_draws": 200}, {"seed": 5}, {"num_chains": 2}):
        with pytest.raises(StorageError, match="another call"):
            fit(model, y, folder=tmp_path, **{**OPTIONS, **other})
    with pytest.raises(StorageError, match="other data"):
        fit(model, y + 1, folder=tmp_path, **OPTIONS)


def test_parts_on_a_command_line_and_their_merger(tmp_path, capsys, whole):
    folder = str(tmp_path / "out")
    assert main([SPEC, "--folder", folder, "--part", "1/2"]) == 0
    assert main(["merge", folder]) == 1
    assert "missing: 1, 3" in capsys.readouterr().err
    assert main([SPEC, "--folder", folder, "--part", "2/2"]) == 0
    assert (
        main(["merge", folder, "--csv", str(tmp_path / "t.csv"), "--netcdf", str(tmp_path / "all.nc")]) == 0
    )
    assert "7 posteriors: {'converged': 7" in capsys.readouterr().out
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 8
    assert (tmp_path / "all.nc").stat().st_size > 7 * 100 * 4
    assert alike(load_many(folder), whole)
    # Whoever starts a part again finds it done.
    assert main([SPEC, "--folder", folder, "--part", "1/2"]) == 0
    with pytest.raises(SystemExit):
        main([SPEC, "--folder", folder, "--part", "3/2"])
    assert main(["merge", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_a_file_without_model_or_framework_is_refused(tmp_path, capsys):
    spec = tmp_path / "spec.py"
    spec.write_text("model = print\n")
    with pytest.raises(SystemExit):
        main([str(spec), "--folder", str(tmp_path)])
    assert "does not define data" in capsys.readouterr().err
    spec.write_text("model = print\ndata = [1]\nframework = 'stan'\n")
    with pytest.raises(SystemExit, match="stan"):
        main([str(spec), "--folder", str(tmp_path)])


def test_a_worker_of_a_process_pool_is_killed(tmp_path, whole):
    context = multiprocessing.get_context("spawn")
    pool = functools.partial(ProcessPoolExecutor, 1, mp_context=context)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        fits = fit_many(
            many_spec.model, many_spec.data(), shared={"dies_at": str(tmp_path / "died")}, executor=pool,
            folder=tmp_path / "out", **many_spec.options,
        )  # fmt: skip
    assert (tmp_path / "died").exists()
    assert fits.missing() == []
    assert alike(fits, whole)
