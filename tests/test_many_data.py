"""The parts of `fit_many` by themselves: forms of data, fits that wait for each other, slices on workers."""

import json
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from pyro_dft.errors import ModelError, PerformanceWarning, StorageError
from pyro_dft.many import executors, pool
from pyro_dft.many.calls import spans
from pyro_dft.many.data import DataSets, checksum, padded, shape_of
from pyro_dft.many.record import Record
from pyro_dft.many.store import Folder

X, Y = np.arange(12.0).reshape(3, 4), np.arange(3.0)


@pytest.mark.parametrize(
    ("data", "second"),
    [
        (X, ((X[1],), {})),
        ((X, Y), ((X[1], Y[1]), {})),
        ({"x": X, "y": Y}, ((), {"x": X[1], "y": Y[1]})),
        (list(X), ((X[1],), {})),
        ((own for own in X), ((X[1],), {})),
        ([(own, 2) for own in X], ((X[1], 2), {})),
        ([{"x": own} for own in X], ((), {"x": X[1]})),
        ([((own,), {"n": 2}) for own in X], ((X[1],), {"n": 2})),
        ([([1.0, 2.0], own) for own in X], (([1.0, 2.0], X[1]), {})),
    ],
    ids=["array", "tuple", "dict", "list", "generator", "tuples", "dicts", "pairs", "nested"],
)
def test_each_form_of_data_gives_the_arguments_of_each_set(data, second):
    found = list(DataSets(data, {"shared": 7}))
    assert len(found) == 3
    args, kwargs = found[1]
    expected = {**second[1], "shared": 7}
    assert shape_of((args, kwargs)) == shape_of((second[0], expected))
    assert checksum((args, kwargs)) == checksum((second[0], expected))


def test_sets_of_one_shape_are_told_from_others():
    same = shape_of(((X[0], 3, "a"), {"k": [Y]}))
    assert same == shape_of(((X[2] + 1, 3, "a"), {"k": [Y * 2]}))
    for other in (
        ((X[0], 4, "a"), {"k": [Y]}),
        ((X[0], 3, "a"), {"k": [Y[:2]]}),
        ((X[0].astype("f4"), 3, "a"), {"k": [Y]}),
    ):
        assert same != shape_of(other)
    assert checksum(((X[0],), {})) != checksum(((X[1],), {}))
    assert checksum(((X[:1],), {})) != checksum(((X[0],), {}))


def test_padding_repeats_rows_and_leaves_other_arrays():
    sets = [((X[0], np.eye(2)), {"n": Y[:1]}), ((X[0, :2], np.ones(3)), {"n": Y[:2]})]
    found, counts = padded(sets, "mask", 4)
    assert counts == [4, 2]
    (x, other), kwargs = found[1]
    assert x.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert other.shape == (3,)
    assert kwargs["n"].tolist() == [0.0, 1.0, 1.0, 1.0]
    assert kwargs["mask"].tolist() == [True, True, False, False]
    assert found[0][1]["n"].shape == (1,)
    with pytest.raises(ModelError, match="no array with rows"):
        padded([((1.0,), {})], "mask", 3)


def test_fits_that_wait_are_answered_together():
    asked = []

    def answer(key, payloads):
        asked.append((key, len(payloads)))
        if 11 in payloads:  # which spoils the call for all that are in it
            raise TypeError("eleven")
        return [ValueError("no") if payload == 13 else payload * 10 for payload in payloads]

    def fit(i):
        if i == 5:
            raise KeyError("mine")
        first = pool.ask("a", i)
        return first + (pool.ask("b", i) if i % 2 else 0)

    assert not pool.inside()
    many = pool.Pool(answer, 8)
    found = dict(many.run((lambda i=i: fit(i)) for i in range(16)))
    assert sorted(found) == list(range(16))
    assert isinstance(found[5], KeyError)
    assert isinstance(found[13], ValueError)
    assert isinstance(found[11], TypeError)
    assert {i: found[i] for i in (0, 1, 14, 15)} == {0: 0, 1: 20, 14: 140, 15: 300}
    assert max(count for _, count in asked) == 8
    assert many.calls[1] == 15 + 5  # one request more of each odd one that is not in error


def test_full_calls_come_first():
    asked = []

    def answer(key, payloads):
        asked.append(len(payloads))
        return payloads

    fits = ((lambda i=i: pool.ask("a", i) + pool.ask("a", i)) for i in range(6))
    assert dict(pool.Pool(answer, 6, lambda key: 4).run(fits)) == {i: 2 * i for i in range(6)}
    assert asked[0] == 4
    assert sum(asked) == 12


def test_an_interrupt_ends_all_fits():
    ended = []

    def fit(i):
        try:
            if i == 3:
                pool.ask("a", i)
                raise KeyboardInterrupt
            pool.ask("b", i)
            pool.ask("b", i)
        finally:
            ended.append(i)

    with pytest.raises(KeyboardInterrupt):
        list(
            pool.Pool(lambda key, payloads: payloads, 5, lambda key: 1).run(
                (lambda i=i: fit(i)) for i in range(5)
            )
        )
    assert sorted(ended) == list(range(5))


class Inline(Executor):
    """Does what it gets at once; loses a worker at each of some calls, and is broken from then on where that is said."""

    _max_workers = 2

    def __init__(self, lost=(), breaks=False):
        self.lost, self.breaks, self.calls, self.broken = set(lost), breaks, 0, False

    def submit(self, function, *args):
        if self.broken:
            raise BrokenProcessPool("a worker died")
        self.calls += 1
        future = Future()
        if self.calls in self.lost:
            self.broken = self.breaks
            future.set_exception(BrokenProcessPool("a worker died"))
        else:
            future.set_result(function(*args))
        return future


@pytest.fixture
def done(monkeypatch):
    """Slices are done by nobody in particular; says which ones were."""
    numbers = []

    def work(job):
        numbers.append(job.number)
        return [Record(row, "converged", [], []) for row, _ in job.arguments["sets"]]

    monkeypatch.setattr(executors, "work", work)
    return numbers


def jobs(count=6):
    return (executors.Job(k, {"sets": [(k, None)]}, [k]) for k in range(count))


def test_lost_slices_are_given_out_again(done):
    made = Inline(lost={2, 3})
    found = list(executors.Crew(made, 3).run(jobs()))
    assert sorted(job.number for job, _ in found) == list(range(6))
    assert {record.status for _, records in found for record in records} == {"converged"}
    assert sorted(done) == list(range(6))
    assert made.calls == 8


def test_a_broken_executor_is_made_anew(done):
    made = []

    def make():
        made.append(Inline(lost={2} if len(made) < 2 else (), breaks=True))
        return made[-1]

    found = list(executors.Crew(make, 3).run(jobs()))
    assert sorted(job.number for job, _ in found) == list(range(6))
    assert sorted(done) == list(range(6))
    assert len(made) == 3


def test_what_a_broken_executor_leaves_is_done_here(done):
    with pytest.warns(PerformanceWarning, match="a worker died"):
        found = list(executors.Crew(Inline(lost={1}, breaks=True), 3).run(jobs()))
    assert sorted(job.number for job, _ in found) == list(range(6))


def test_a_slice_that_is_lost_each_time_is_failed_with_the_reason(done):
    found = {
        job.number: records for job, records in executors.Crew(Inline(lost=range(3, 99)), 2).run(jobs(4))
    }
    assert sorted(found) == list(range(4))
    assert [records[0].status for _, records in sorted(found.items())].count("failed") == 2
    (reason,) = {tuple(own[0].warnings) for own in found.values() if own[0].status == "failed"}
    assert "a worker died" in reason[0]


def test_a_folder_holds_what_was_written_and_nothing_else(tmp_path):
    call = {"framework": "pyro", "seed": 1, "slices": 2}
    folder = Folder(tmp_path, call)
    draws = {"a/mu": np.arange(6.0).reshape(1, 6), "b": np.ones((1, 6, 2), np.float32)}
    records = [
        Record(
            0,
            "suspect",
            ["why"],
            ["gap"],
            {"x": 1.5},
            draws,
            {"diverging": np.zeros((1, 6), bool)},
            {"b": ["k"]},
            3,
        ),
        Record.of_error(1, ModelError("no\nmore")),
    ]
    folder.write(0, records, [11, 12])
    assert folder.holds(0, [11, 12])
    assert not folder.holds(1, [13])
    found = Folder(tmp_path).read(0)
    assert [json.dumps(own.header()) for own in found] == [json.dumps(own.header()) for own in records]
    for name, value in draws.items():
        assert np.array_equal(found[0].samples[name], value)
        assert found[0].samples[name].dtype == value.dtype
    assert found[0].stats["diverging"].dtype == bool
    assert found[1].warnings == ["ModelError: no"]
    with pytest.raises(StorageError, match="other data"):
        folder.holds(0, [11, 99])
    with pytest.raises(StorageError, match="another call"):
        Folder(tmp_path, {**call, "seed": 2}).holds(0, [11, 12])
    with pytest.raises(StorageError, match="no such folder"):
        Folder(tmp_path / "none")
    folder.file(0).write_bytes(folder.file(0).read_bytes()[:-3])
    with pytest.raises(StorageError):
        Folder(tmp_path).read(0)


def test_calls_have_few_sizes_and_little_that_nobody_asked_for():
    for largest in (1, 4, 64, 100):
        sizes = set()
        for count in range(1, 300):
            found = spans(count, largest)
            ends = [start + size for start, size in found]
            assert [start for start, _ in found] == [0, *ends[:-1]]
            assert ends[-2 if len(ends) > 1 else -1] < count <= ends[-1] or len(found) == 1
            assert ends[-1] < 4 * count + 1
            sizes |= {size for _, size in found}
        assert max(sizes) <= largest
        assert len(sizes) <= 4
    assert spans(70, 64) == [(0, 64), (64, 8)]
    assert spans(2, 64) == [(0, 1), (1, 1)]
