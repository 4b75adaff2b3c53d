"""Saved files: round trip, refusal of what cannot be trusted, atomic writes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pyro_dft._version import __version__
from pyro_dft.errors import StorageError
from pyro_dft.interface import storage
from pyro_dft.layout import Layout, SiteInfo

TENSORS = {
    "generator.0.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "mean": np.linspace(-1, 1, 5),
    "steps": np.array(7),
    "half": np.ones(3, dtype=np.float16),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 3)),
}
HEADER = {"settings": {"sigma": 0.1, "name": "später", "none": None}, "layout": {"sites": []}}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "fit.safetensors"
    storage.save(path, TENSORS, HEADER)
    return path


def rewrite(path, **changes):
    """Change entries of the header of a saved file and nothing else."""
    tensors, header = storage.load(path)
    save_file(tensors, path, metadata={"pyro_dft": json.dumps({**header, **changes})})


class TestRoundTrip:
    def test_tensors_and_header(self, path):
        tensors, header = storage.load(path)
        assert tensors.keys() == TENSORS.keys()
        for name, expected in TENSORS.items():
            assert tensors[name].dtype == expected.dtype
            assert tensors[name].shape == expected.shape
            np.testing.assert_array_equal(tensors[name], expected)
        assert {key: header[key] for key in HEADER} == HEADER
        assert (header["format"], header["version"]) == (1, __version__)

    def test_str_path_and_replacement(self, path):
        storage.save(str(path), {"a": np.zeros(2)}, {})
        assert list(storage.load(str(path))[0]) == ["a"]

    def test_strided_and_big_endian_arrays(self, tmp_path):
        arrays = {
            "transposed": np.arange(6.0).reshape(2, 3).T,
            "strided": np.arange(10.0)[::3],
            "broadcast": np.broadcast_to(1.5, (2, 2)),
            "big": np.arange(3, dtype=">f4"),
        }
        storage.save(tmp_path / "a", arrays, {})
        loaded, _ = storage.load(tmp_path / "a")
        for name, expected in arrays.items():
            np.testing.assert_array_equal(loaded[name], expected)

    def test_any_safetensors_reader_can_read_it(self, path):
        np.testing.assert_array_equal(load_file(path)["mean"], TENSORS["mean"])

    def test_loaded_arrays_are_writable_and_outlive_the_file(self, path):
        tensors, _ = storage.load(path)
        path.unlink()
        tensors["mean"] += 1.0
        np.testing.assert_array_equal(tensors["mean"], TENSORS["mean"] + 1.0)

    def test_header_takes_numpy_values(self, tmp_path):
        storage.save(
            tmp_path / "a", {"t": np.ones(1)}, {"x": np.float32(0.5), "y": np.arange(3), "z": np.bool_(True)}
        )
        _, header = storage.load(tmp_path / "a")
        assert (header["x"], header["y"], header["z"]) == (0.5, [0, 1, 2], True)

    def test_needs_neither_torch_nor_jax(self):
        code = (
            "import sys, pyro_dft.interface.storage, pyro_dft.judging.drift, pyro_dft.export.arviz, pyro_dft.judging.summary\n"
            "sys.exit(any(name in sys.modules for name in ('torch', 'jax', 'arviz')))"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestSaveRefuses:
    @pytest.mark.parametrize("value", [np.array(["a"]), np.array([1j]), np.array([{}], dtype=object)])
    def test_types_it_cannot_hold(self, tmp_path, value):
        with pytest.raises(TypeError, match="'odd'"):
            storage.save(tmp_path / "a", {"odd": value}, {})
        assert list(tmp_path.iterdir()) == []

    def test_headers_it_cannot_hold(self, tmp_path):
        with pytest.raises(TypeError, match="Layout"):
            storage.save(tmp_path / "a", {}, {"layout": Layout(())})
        with pytest.raises(ValueError, match="reserved"):
            storage.save(tmp_path / "a", {}, {"format": 2})

    def test_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            storage.save(tmp_path / "no" / "a", {}, {})


class TestLoadRefuses:
    def refuses(self, path, message):
        with pytest.raises(StorageError, match=message) as caught:
            storage.load(path)
        assert str(path) in str(caught.value)

    def test_every_truncation(self, path):
        content = path.read_bytes()
        for size in {*range(0, len(content), 37), 0, 8, 9, len(content) - 1}:
            path.write_bytes(content[:size])
            self.refuses(path, "truncated")

    def test_truncated_messages_give_sizes(self, path):
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        self.refuses(path, rf"truncated \({len(content) - 1} of {len(content)} bytes\)")

    def test_other_kinds_of_file(self, path):
        for content in (b"PK\x03\x04 a zip file, as torch.save writes", b"hello world, this is text"):
            path.write_bytes(content)
            self.refuses(path, "not a safetensors file")
        path.write_bytes((6).to_bytes(8, "little") + b"{oops}" + b"data")
        self.refuses(path, "header cannot be read")

    def test_foreign_safetensors_file(self, path):
        save_file({"a": np.zeros(2)}, path)
        self.refuses(path, "not one that pyro_dft wrote")
        save_file({"a": np.zeros(2)}, path, metadata={"format": "pt"})
        self.refuses(path, "not one that pyro_dft wrote")

    def test_broken_header(self, path):
        for content, message in (("{", "not JSON"), ("[]", "no format"), ('{"format": "x"}', "no format")):
            save_file({"a": np.zeros(2)}, path, metadata={"pyro_dft": content})
            self.refuses(path, message)

    def test_newer_format(self, path):
        rewrite(path, format=2, version="9.1")
        self.refuses(path, r"format 2, written by pyro_dft 9\.1, is newer .* upgrade")

    def test_one_flipped_bit_anywhere_in_the_data(self, path):
        content = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")
        for position in range(start, len(content)):
            content[position] ^= 1
            path.write_bytes(content)
            self.refuses(path, "damaged")
            content[position] ^= 1
        path.write_bytes(content)
        storage.load(path)

    def test_no_damaged_byte_of_the_header_changes_what_is_read(self, path):
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        expected = storage.load(path)
        read = 0
        for position in range(end):
            for flip in (1, 255):
                damaged = bytearray(content)
                damaged[position] ^= flip
                path.write_bytes(damaged)
                try:
                    tensors, header = storage.load(path)
                except StorageError:
                    continue
                read += 1
                assert header == expected[1]
                assert all(np.array_equal(tensors[name], value) for name, value in expected[0].items())
        assert read < end // 10

    def test_files_of_early_versions_have_no_checksum_of_the_header(self, path):
        tensors, header = storage.load(path)
        text = json.dumps(header)
        save_file(tensors, path, metadata={"pyro_dft": text})
        assert storage.load(path)[1] == header
        for more in ({"pyro_dft_crc32": "00000000"}, {"pyro_dft_crc33": "00000000"}):
            save_file(tensors, path, metadata={"pyro_dft": text, **more})
            self.refuses(path, "damaged, the checksum of the header")

    def test_headers_that_are_too_much(self, path):
        deep = "[" * 100_000 + "]" * 100_000
        for text, message in (
            (deep, "not JSON"),
            ('{"format": 1' + "0" * 5000 + "}", "not JSON"),
            ('{"format": true}', "no format"),
            ('{"format": 1e999}', "no format"),
        ):
            save_file({"a": np.zeros(2)}, path, metadata={"pyro_dft": text})
            self.refuses(path, message)
        for text in (
            "{" + f'"a": {deep}' + "}",
            '{"a": {"data_offsets": [0, 1e999]}}',
            '{"a": {"data_offsets": [0, "1"]}}',
        ):
            path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + b"data")
            self.refuses(path, "header cannot be read")

    def test_trailing_bytes(self, path):
        path.write_bytes(path.read_bytes() + b"more")
        self.refuses(path, "not a valid safetensors file")

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            storage.load(tmp_path / "none")


class TestChecks:
    shapes = {name: array.shape for name, array in TENSORS.items()}

    def test_right_tensors_pass(self, path):
        storage.check_tensors(path, storage.load(path)[0], self.shapes)

    def test_missing_unexpected_and_wrong_shape(self):
        tensors = dict(TENSORS, extra=np.zeros(1), mean=np.zeros((5, 1)))
        del tensors["steps"]
        with pytest.raises(StorageError) as caught:
            storage.check_tensors("fit", tensors, self.shapes)
        assert str(caught.value) == (
            "fit: missing tensors: steps; unexpected tensors: extra; mean has shape (5, 1), expected (5,)"
        )

    def test_layout(self):
        layout = Layout((SiteInfo("mu", (), (), "real"), SiteInfo("tau", (2,), (2,), "positive")))
        saved = json.loads(json.dumps(layout.to_json()))
        storage.check_layout("fit", saved, layout)
        other = Layout((SiteInfo("mu", (), (), "real"), SiteInfo("tau", (3,), (3,), "positive")))
        with pytest.raises(StorageError, match=r"^fit: .*another model.*tau.*\(3,\) here.*\(2,\) there"):
            storage.check_layout("fit", saved, other)
        with pytest.raises(StorageError, match="layout cannot be read"):
            storage.check_layout("fit", {"sites": [{"name": "mu"}]}, layout)


class TestAtomicity:
    @pytest.mark.parametrize("step", ["fsync", "replace"])
    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
    def test_interrupted_write_leaves_the_old_file(self, path, monkeypatch, step, error):
        def interrupted(*_):
            raise error

        before = path.read_bytes()
        monkeypatch.setattr(os, step, interrupted)
        with pytest.raises(error):
            storage.save(path, {"a": np.zeros(1000)}, {})
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]

    def test_interrupted_first_write_leaves_nothing(self, tmp_path, monkeypatch):
        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            storage.save(tmp_path / "a", {"a": np.zeros(10)}, {})
        assert list(tmp_path.iterdir()) == []

    def test_writes_through_a_link(self, path):
        link = path.with_name("latest")
        link.symlink_to(path)
        storage.save(link, {"a": np.zeros(1)}, {})
        assert link.is_symlink()
        assert list(storage.load(path)[0]) == ["a"]
