"""`DFT` as its users meet it: saved, loaded, copied."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from dft_fits import Y, equal
from quick import (
    GAUSSIAN,
    NETWORK,
    known_mean,
    line,
    line_data,
    schools_data,
)

from pyro_dft import DFT, NotFittedError, StorageError
from pyro_dft.interface import storage

# A fit of a second may be doubted. Whether it is doubted rightly is tested elsewhere.
pytestmark = [pytest.mark.filterwarnings("ignore:the fit is"), pytest.mark.usefixtures("brief_surrogate")]


@pytest.fixture(scope="module")
def fitted():
    """One chain, Gaussian only."""
    dft = DFT(line, disable_progbar=True, **GAUSSIAN)
    dft.run(*line_data())
    return dft


@pytest.fixture(scope="module")
def chains():
    """Three chains with networks."""
    dft = DFT(known_mean, disable_progbar=True, num_chains=3, **NETWORK)
    dft.run(Y)
    return dft


class TestFiles:
    def test_the_same_sampler_comes_back(self, fitted, tmp_path):
        path = tmp_path / "fit.safetensors"
        fitted.save(path)
        loaded = DFT.load(path, line, disable_progbar=True)
        assert equal(loaded.get_samples(), fitted.get_samples())
        assert str(loaded.summary_table()) == str(fitted.summary_table())
        assert loaded.diagnostics()["drift_raw"] == fitted.diagnostics()["drift_raw"]
        assert loaded.settings == fitted.settings
        assert (
            loaded.get_samples(3000)["slope"]
            .mean(0)
            .sub(fitted.get_samples(3000)["slope"].mean(0))
            .abs()
            .max()
            < 0.05
        )
        assert loaded.to_inference_data().observed_data["y"].shape == (20,)
        assert loaded.guide()["slope"].shape == (2,)
        loaded.save(tmp_path / "again.safetensors")
        assert equal(DFT.load(tmp_path / "again.safetensors", line).get_samples(), fitted.get_samples())

    def test_networks_and_chains(self, chains, tmp_path):
        chains.save(tmp_path / "fit")
        loaded = DFT.load(tmp_path / "fit", known_mean)
        assert loaded.num_chains == 3
        assert equal(loaded.get_samples(), chains.get_samples())
        state = chains.parts.backend.rng.get_state()
        loaded.parts.backend.rng.set_state(state)
        new = loaded.get_samples(10, refine_steps=0)
        chains.parts.backend.rng.set_state(state)
        assert equal(new, chains.get_samples(10, refine_steps=0))

    def test_non_centred_samplers(self, tmp_path):
        def centred(y, error):
            mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
            tau = pyro.sample("tau", dist.HalfNormal(5.0))
            with pyro.plate("school", len(y)):
                pyro.sample("y", dist.Normal(pyro.sample("theta", dist.Normal(mu, tau)), error), obs=y)

        dft = DFT(centred, disable_progbar=True, **GAUSSIAN)
        dft.run(*schools_data())
        assert dft.diagnostics()["coordinates"] == ["theta"]
        dft.save(tmp_path / "fit")
        loaded = DFT.load(tmp_path / "fit", centred)
        for name, value in dft.get_samples().items():
            torch.testing.assert_close(loaded.get_samples()[name], value)
        arrays, header = storage.load(tmp_path / "fit")
        header["sampler_layout"] = {"sites": []}
        self.rewrite(tmp_path / "fit", arrays, header)
        with pytest.raises(StorageError, match="coordinates"):
            DFT.load(tmp_path / "fit", centred)

    def test_a_potential(self, tmp_path):
        given = {"potential_fn": lambda z: (0.5 * z["a"] ** 2).sum(), "initial_params": {"a": torch.zeros(2)}}
        dft = DFT(**given, disable_progbar=True, **GAUSSIAN)
        dft.run()
        dft.save(tmp_path / "fit")
        assert equal(DFT.load(tmp_path / "fit", **given).get_samples(), dft.get_samples())
        with pytest.raises(StorageError, match="potential differs"):
            DFT.load(tmp_path / "fit", **given | {"potential_fn": lambda z: (0.6 * z["a"] ** 2).sum()})
        with pytest.raises(StorageError, match="'a'"):
            DFT.load(tmp_path / "fit", **given | {"initial_params": {"a": torch.zeros(3)}})

    def test_without_the_data(self, fitted, tmp_path):
        path = tmp_path / "fit"
        fitted.save(path, data=False)
        assert not any(name.startswith("arguments") for name in storage.load(path)[0])
        x, y = line_data()
        assert equal(DFT.load(path, line, x, y=y).get_samples(), fitted.get_samples())
        with pytest.raises(StorageError, match="does not hold the model's arguments: give them"):
            DFT.load(path, line)
        with pytest.raises(StorageError, match="potential differs"):
            DFT.load(path, line, x, y.roll(1))
        with pytest.raises(StorageError, match="potential differs"):
            DFT.load(path, line, x, y + 1e-3)

    def test_arguments_of_many_kinds(self, tmp_path):
        def model(data, *, scale, note=None, prior=()):
            mu = pyro.sample("mu", dist.Normal(prior[0], float(scale["sd"])))
            with pyro.plate("data", len(data["y"])):
                pyro.sample("y", dist.Normal(mu, 1.0), obs=data["y"])

        dft = DFT(model, disable_progbar=True, **GAUSSIAN)
        dft.run(
            {"y": Y, "n": 5, "flag": True}, scale={"sd": np.float64(2.0)}, note=None, prior=(0.5, "normal")
        )
        dft.save(tmp_path / "fit")
        assert equal(DFT.load(tmp_path / "fit", model).get_samples(), dft.get_samples())
        dft.run({"y": Y}, scale={"sd": 2.0}, note=object(), prior=[0.5])  # an argument that no file can hold
        dft.save(tmp_path / "fit")
        with pytest.raises(StorageError, match="give them"):
            DFT.load(tmp_path / "fit", model)
        DFT.load(tmp_path / "fit", model, {"y": Y}, scale={"sd": 2.0}, prior=[0.5])

    @pytest.mark.parametrize("cut", [0.0, 0.1, 0.9])
    def test_truncated(self, fitted, tmp_path, cut):
        path = tmp_path / "fit"
        fitted.save(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(cut * len(content))])
        with pytest.raises(StorageError, match="truncated"):
            DFT.load(path, line)

    def test_never_pickle(self, fitted, tmp_path):
        path = tmp_path / "fit"
        fitted.save(path)
        assert path.read_bytes()[8:9] == b"{"  # safetensors: a length, then JSON
        path.write_bytes(pickle.dumps({"mean": 1}))
        with pytest.raises(StorageError, match="not a safetensors file"):
            DFT.load(path, line)

    def test_another_model(self, fitted, tmp_path):
        path = tmp_path / "fit"
        fitted.save(path)

        def other_prior(x, y=None):
            slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.1).to_event(1))
            scale = pyro.sample("scale", dist.HalfNormal(1.0))
            with pyro.plate("row", len(x)):
                pyro.sample("y", dist.Normal(x @ slope, scale), obs=y)

        with pytest.raises(StorageError, match="potential differs"):
            DFT.load(path, other_prior)
        with pytest.raises(StorageError, match="does not run on"):
            DFT.load(path, known_mean)
        with pytest.raises(StorageError, match="another model.*'mu'"):
            DFT.load(path, known_mean, Y)

    def rewrite(self, path, arrays, header):
        for key in ("format", "version", "crc32"):
            header.pop(key)
        storage.save(path, arrays, header)
        return path

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda a, h: h["settings"].update(new_setting=1), "new_setting"),
            (lambda a, h: h.pop("settings"), "settings"),
            (lambda a, h: h.pop("layout"), "layout"),
            (lambda a, h: h.pop("diagnostics"), "diagnostics"),
            (lambda a, h: h.pop("objective"), "objective"),
            (lambda a, h: h.update(arguments={"odd": 1}), "odd"),
            (lambda a, h: a.pop("check.values"), "check.values"),
            (lambda a, h: a.pop("scale"), "missing tensors: scale"),
            (lambda a, h: a.pop("measured.raw"), "missing tensors: measured.raw"),
            (lambda a, h: a.update(extra=np.zeros(1)), "unexpected tensors: extra"),
            (lambda a, h: a.update(mean=a["mean"][:, :1]), "mean has shape"),
        ],
    )
    def test_incomplete(self, fitted, tmp_path, change, message):
        path = tmp_path / "fit"
        fitted.save(path)
        arrays, header = storage.load(path)
        change(arrays, header)
        with pytest.raises(StorageError, match=message):
            DFT.load(self.rewrite(path, arrays, header), line)

    def test_a_newer_format(self, fitted, tmp_path, monkeypatch):
        monkeypatch.setattr(storage, "FORMAT", storage.FORMAT + 1)
        fitted.save(tmp_path / "fit")
        monkeypatch.undo()
        with pytest.raises(StorageError, match="newer"):
            DFT.load(tmp_path / "fit", line)

    def test_copies(self, fitted, chains):
        for copied in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
            assert equal(copied.get_samples(), fitted.get_samples())
            assert copied.get_samples(10)["slope"].shape == (10, 2)
        assert equal(copy.copy(chains).get_samples(), chains.get_samples())
        untrained = pickle.loads(pickle.dumps(DFT(line, disable_progbar=True, **GAUSSIAN)))
        with pytest.raises(NotFittedError):
            untrained.get_samples()
        untrained.run(*line_data())
