"""The flat vector."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pyro_dft.layout import Layout, SiteInfo

LAYOUT = Layout(
    (
        SiteInfo("b", (2, 3), (2, 3), "real"),
        SiteInfo("mu", (), (), "real"),
        SiteInfo("w", (2,), (3,), "simplex"),
    )
)


def test_dim_slices_and_names():
    assert LAYOUT.dim == 9
    assert LAYOUT.slices == {"b": slice(0, 6), "mu": slice(6, 7), "w": slice(7, 9)}
    assert LAYOUT.names == ("b", "mu", "w")
    assert LAYOUT.coordinate_names() == [
        "b[0,0]", "b[0,1]", "b[0,2]", "b[1,0]", "b[1,1]", "b[1,2]", "mu", "w[0]", "w[1]"
    ]  # fmt: skip
    assert LAYOUT["w"].constrained_shape == (3,)
    with pytest.raises(KeyError, match="tau"):
        LAYOUT["tau"]


@pytest.mark.parametrize("array", [np.asarray, torch.as_tensor, jnp.asarray])
@pytest.mark.parametrize("lead", [(), (4,), (2, 4)])
def test_unflatten_keeps_leading_axes_of_any_kind_of_array(array, lead):
    x = np.arange(np.prod((*lead, 9)), dtype=np.float32).reshape(*lead, 9)
    sites = LAYOUT.unflatten(array(x))
    assert {name: tuple(value.shape) for name, value in sites.items()} == {
        "b": (*lead, 2, 3), "mu": lead, "w": (*lead, 2)
    }  # fmt: skip
    assert all(type(value) is type(array(x)) for value in sites.values() if lead)
    np.testing.assert_array_equal(np.asarray(sites["b"]).reshape(*lead, 6), x[..., :6])
    np.testing.assert_array_equal(np.asarray(sites["mu"]), x[..., 6])
    np.testing.assert_array_equal(np.asarray(sites["w"]), x[..., 7:])


def test_unflatten_checks_the_length():
    with pytest.raises(ValueError, match=r"expected 9 coordinates in the last dimension, got \(8,\)"):
        LAYOUT.unflatten(np.zeros(8))


def test_json_round_trip():
    assert Layout.from_json(json.loads(json.dumps(LAYOUT.to_json()))) == LAYOUT


@pytest.mark.parametrize("broken", [{}, {"sites": [{"name": "a"}]}, {"sites": 3}, None])
def test_from_json_rejects_anything_else(broken):
    with pytest.raises(ValueError, match="not a layout"):
        Layout.from_json(broken)


def test_order_is_enforced():
    a, b = SiteInfo("a", (), (), "real"), SiteInfo("b", (), (), "real")
    with pytest.raises(ValueError, match="sorted order"):
        Layout((b, a))
    with pytest.raises(ValueError, match="distinct"):
        Layout((a, a))


def test_mismatch_names_the_first_difference():
    assert LAYOUT.mismatch(LAYOUT) is None
    shorter = Layout(LAYOUT.sites[:2])
    assert LAYOUT.mismatch(shorter) == "sites differ: ['w'] only here, [] only there"
    other = Layout((*LAYOUT.sites[:2], SiteInfo("w", (3,), (4,), "simplex")))
    assert LAYOUT.mismatch(other) == "site 'w': unconstrained_shape is (2,) here, (3,) there"
