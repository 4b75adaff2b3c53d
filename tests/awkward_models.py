"""Small Pyro models, each with one construct that a batch of points may stumble over."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.ops.newton import newton_step
from pyro.ops.special import safe_log
from pyro.util import warn_if_inf, warn_if_nan

# Name -> makes a model and its arguments.
MODELS: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {}


def data(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(*args: Any) -> Callable[[Any], Any]:
    """Registers a model by its name, with the arguments that it is run with."""

    def register(model: Any) -> Any:
        MODELS[model.__name__] = lambda: (model, args)
        return model

    return register


def made(build: Callable[[], Any]) -> Callable[[], Any]:
    """Registers a function that makes a model and its arguments."""
    MODELS[build.__name__] = build
    return build


def normal(name: str, *shape: int) -> torch.Tensor:
    zero = torch.zeros(shape, dtype=torch.float64)
    return pyro.sample(name, dist.Normal(zero, 1.0).to_event(len(shape)))


def lognormal(name: str) -> torch.Tensor:
    return pyro.sample(name, dist.LogNormal(torch.tensor(0.0, dtype=torch.float64), 0.5))


def observe(y: torch.Tensor, loc: Any, scale: Any = 1.0) -> None:
    with pyro.plate("row", y.shape[-1]):
        pyro.sample("y", dist.Normal(loc, scale), obs=y)


Y = data(0, 5)

# Checks of values, branches and numbers.


@case(Y, torch.tensor(False))
def a_mask_that_is_one_number(y, mask):
    x = normal("x")
    with pyro.plate("row", len(y)):
        seen = pyro.sample("y", dist.Normal(x, 1.0), obs=y, obs_mask=mask)
    assert ((seen == y) == mask).all()


@case(Y)
def warns_if_nan(y):
    x = normal("x")
    observe(y, warn_if_nan(x, "x"))


@case(Y)
def warns_if_inf(y):
    x = normal("x")
    observe(y, warn_if_inf(x.exp(), "x"))


@case(Y)
def asserts(y):
    scale = lognormal("scale")
    assert (scale > 0).all()
    assert torch.isfinite(scale)
    observe(y, 0.0, scale)


@case(Y)
def asserts_what_may_fail(y):
    x = normal("x")
    assert (x > -0.6).all(), "x is too small"
    observe(y, x)


@case(Y)
def raises_what_may_fail(y):
    x = normal("x")
    if x < -0.6:
        raise ValueError("x is too small")
    observe(y, x)


@case(Y)
def branches(y):
    x = normal("x")
    if x > 0:
        observe(y, x)
    else:
        observe(y, 2 * x)


@case(Y)
def branches_on_several(y):
    x = normal("x", 3)
    for i in range(3):
        if x[i] > 0:
            x = x * 1.5
    observe(y, x.sum())


@case(Y)
def compares_items(y):
    x = normal("x")
    loc = x if x.item() > 0.1 else 0.5 * x
    observe(y, loc, 1.0 + x.detach().abs().item())


@case(Y)
def takes_the_largest(y):
    a, b = normal("a"), normal("b")
    observe(y, max(a, b))


@case(Y)
def clips_by_min_and_max(y):
    x = normal("x")
    observe(y, min(max(x, torch.tensor(-0.5)), torch.tensor(0.5)) + x)


@case(Y)
def iterates_to_a_tolerance(y):
    x = normal("x")
    root, step = torch.ones_like(x), torch.ones_like(x)
    while step.abs() > 1e-10:
        step = (root**3 + root - 2 - x) / (3 * root**2 + 1)
        root = root - step
    observe(y, root)


@case(Y)
def counts_by_a_value(y):
    x = normal("x")
    loc = x
    for _ in range(int(x.abs().clamp(max=2.0) * 2)):
        loc = 0.5 * loc
    observe(y, loc)


@case(Y)
def sizes_by_a_value(y):
    x = normal("x")
    k = (x > 0).long() + 2
    observe(y, (x * torch.arange(k)).sum() + y[:k].sum() + y.repeat(k).mean() * x)


@case(Y)
def indexes_by_a_mask(y):
    x = normal("x", 3)
    positive = x[x > 0]
    observe(y, positive.square().sum() + x.sum())


@case(Y)
def writes_by_a_mask(y):
    x = normal("x", 3)
    z = 2 * x
    z[x < 0] = z[x < 0] ** 2
    observe(y, z.sum())


@case(Y)
def looks_for_equal(y):
    x = normal("x", 2)
    observe(y, x.sum() if torch.equal(x, x.abs()) else x[0])


@case(Y)
def finds_where(y):
    x = normal("x", 3)
    (where,) = torch.where(x > 0)
    observe(y, x[where].sum() + x[0])


@case(Y)
def changepoint(y):
    tau = pyro.sample("tau", dist.Uniform(torch.tensor(0.0, dtype=torch.float64), 5.0))
    a, b = normal("a"), normal("b")
    k = int(tau)
    observe(y, torch.cat([a.expand(k), b.expand(5 - k)]))


@case(Y)
def scaled_by_a_latent(y):
    x = lognormal("x")
    with poutine.scale(scale=x):
        observe(y, 0.0)


@case(Y)
def hooks(y):
    x = normal("x")
    if x.requires_grad:
        x.register_hook(lambda g: g.clamp(-100.0, 100.0))
    observe(y, x)


# Functions of the user's own.


class OldPower(torch.autograd.Function):
    """In the old form, with a number left on the context."""

    @staticmethod
    def forward(ctx, x, power):
        ctx.power, result = power, x**power
        ctx.save_for_backward(x, result)
        return result

    @staticmethod
    def backward(ctx, grad):
        x, result = ctx.saved_tensors
        return grad * ctx.power * result / x, None


class NewExp(torch.autograd.Function):
    """In the new form, without a rule for batches."""

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


@case(Y)
def old_function(y):
    observe(y, OldPower.apply(lognormal("x"), 3))


@case(Y)
def new_function(y):
    observe(y, NewExp.apply(normal("x")))


@case(Y)
def differentiates_inside(y):
    x = normal("x")
    with torch.enable_grad():
        z = x if x.requires_grad else x.detach().requires_grad_()
        (slope,) = torch.autograd.grad((z**3).sum(), z, create_graph=True)
    observe(y, slope)


@case(Y)
def differentiates_by_func(y):
    observe(y, torch.func.grad(lambda z: z**3)(normal("x")))


@case(Y)
def vmaps_inside(y):
    x = normal("x")
    pyro.sample("y", dist.Normal(torch.func.vmap(lambda t: x * t)(y), 1.0).to_event(1), obs=y)


@case(Y)
def checkpoints(y):
    observe(y, torch.utils.checkpoint.checkpoint(torch.sin, normal("x"), use_reentrant=False))


def scripted(x: torch.Tensor) -> torch.Tensor:
    for _ in range(3):
        x = torch.sin(x) + x
    return x


@made
def uses_script():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, in words that change
        function = torch.jit.script(scripted)
    return lambda y: observe(y, function(normal("x"))), (Y,)


@case(Y)
def newton(y):
    x = normal("x", 2)
    z = torch.zeros(2, dtype=y.dtype, requires_grad=True)
    with torch.enable_grad():
        loss = ((z - x) ** 2).sum() + (z**4).sum()
        mode, _ = newton_step(loss, z)
    observe(y, mode.sum())


# Writing in place, counting, random numbers.


@case(Y)
def writes_in_place(y):
    x = normal("x", 2)
    z = torch.zeros(3, dtype=y.dtype)
    z[0] = x[0]
    z[1:] += x
    z.mul_(2.0)
    observe(y, z.sum())


@case(Y)
def scatters(y):
    x = normal("x", 3)
    index = torch.tensor([0, 0, 1])
    a = torch.zeros(2, dtype=y.dtype).index_add_(0, index, x)
    b = torch.zeros(2, dtype=y.dtype).scatter_add_(0, index, x)
    c = torch.zeros(2, dtype=y.dtype).index_put_((index,), x, accumulate=True)
    observe(y, (a * b * c).sum())


@case(Y)
def counts_data(y):
    x = normal("x", 3)
    counts = torch.bincount((y > 0).long() + (y > 1).long(), minlength=3)
    pyro.factor("y", (counts * torch.log_softmax(x, -1)).sum())


@case(Y)
def counts_latents(y):
    x = normal("x", 3)
    counts = torch.bincount((x > 0).long(), minlength=2)
    observe(y, x.sum(), 1.0 + counts[1])


@case(Y)
def own_random_numbers(y):
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randn(20, generator=generator, dtype=torch.float64)
    observe(y, (normal("x") * nodes).tanh().mean())


@case(Y)
def fills_a_list(y):
    a, b = normal("a"), lognormal("b")
    state = [a]
    for _ in range(4):
        state.append(b * state[-1] / (1 + state[-1] ** 2))
    observe(y, torch.stack(state))


@case(Y)
def safe_logs(y):
    observe(y, safe_log(lognormal("x")))


CELL = torch.nn.GRU(1, 1).double()


@case(Y)
def recurrent_network(y):
    x = normal("x", 12)
    shapes = {name: value.shape for name, value in CELL.named_parameters()}
    parts = iter(x.split([value.numel() for value in CELL.parameters()]))
    weights = {name: next(parts).reshape(shape) for name, shape in shapes.items()}
    output, _ = torch.func.functional_call(CELL, weights, (y[:, None],))
    observe(y, output[:, 0])
