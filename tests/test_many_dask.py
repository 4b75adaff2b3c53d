"""Many posteriors on a Dask cluster of which a worker is killed: each is there once."""

import warnings

import many_spec
import numpy as np
import pytest
from distributed import Client, LocalCluster

from pyro_dft.numpyro import fit_many


@pytest.fixture(scope="module")
def client():
    """Two worker processes of a real cluster on this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ports and sockets that are in use or closed late
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            yield client


@pytest.mark.slow
def test_a_worker_of_a_dask_cluster_is_killed(client, tmp_path):
    died = tmp_path / "died"
    before = set(client.scheduler_info()["workers"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits = fit_many(
            many_spec.model, many_spec.data(), shared={"dies_at": str(died)}, executor=client.get_executor(),
            **many_spec.options,
        )  # fmt: skip
        client.wait_for_workers(2, timeout=60)
    assert died.exists()
    assert set(client.scheduler_info()["workers"]) != before  # another one has taken the dead one's place
    whole = fit_many(many_spec.model, many_spec.data(), **many_spec.options)
    assert fits.indices == whole.indices == list(range(7))
    assert fits.missing() == []
    for i in whole.indices:
        here, there = (own.get_samples(i)["mu"] for own in (whole, fits))
        assert here.shape == there.shape
        assert np.median(np.abs(here - there)) < 1e-4
