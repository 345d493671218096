"""Weight files: shards, pickles and JSON that cannot be trusted are refused before anything is made of them."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mvlm_core.backbones import tensor_files as checkpoint_files
from tests.support.checkpoints import NORM, ROWS, refused, spoil, stock_llava, write, write_original, write_shards


@pytest.fixture(scope="module")
def stock():
    return stock_llava(ROWS)


class RunsCode:
    def __reduce__(self):
        return os.getcwd, ()


def pickled(value):
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(value, folder / "pytorch_model.bin")

    return apply


def many_names(folder: Path) -> None:
    """As a header of 900,000 tensors begins; the rest of the file is a hole."""
    with (folder / "model.safetensors").open("wb") as file:
        file.write((90_000_000).to_bytes(8, "little"))
        file.truncate(90_000_100)


def old_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": RunsCode()}, protocol=2))


def long_pickle(folder: Path) -> None:
    """As a file of before PyTorch 1.6 with a million names; two of its pickles are as they should be."""
    (folder / "model.safetensors").unlink()
    begins = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2)
    (folder / "pytorch_model.bin").write_bytes(begins + pickle.dumps(["x" * 9 * 2**20], protocol=2))


def zipped(write_members, **options):
    """A file of weights that is a zip with members of one's own."""

    def apply(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with zipfile.ZipFile(folder / "pytorch_model.bin", "w", **options) as held:
            write_members(held)

    return apply


def many_members(held: zipfile.ZipFile) -> None:
    """A list as long as that of a million tensors; the members themselves are empty."""
    for number in range(150):
        held.writestr(f"archive/data/{number}" + 60_000 * "x", b"")


def long_list(folder: Path) -> None:
    """A zip64 that says so of itself at its end, where a plain one would say little."""
    (folder / "model.safetensors").unlink()
    end_64 = b"PK\x06\x06" + (44).to_bytes(8, "little") + bytes(28) + (2**40).to_bytes(8, "little") + bytes(8)
    end = b"PK\x05\x06" + bytes(18)
    (folder / "pytorch_model.bin").write_bytes(end_64 + b"PK\x06\x07" + bytes(16) + end)


def sharded(harm):
    def apply(folder: Path) -> None:
        write_shards(folder, load_file(folder / "model.safetensors"))
        harm(folder)

    return apply


def index_says(change_places):
    def apply(folder: Path) -> None:
        file = folder / "model.safetensors.index.json"
        told = json.loads(file.read_text())
        change_places(told["weight_map"])
        write(file, told)

    return sharded(apply)


def cut_list(folder: Path) -> None:
    """A zip whose end points at a list that is none."""
    zipped(lambda held: held.writestr("a/data.pkl", b"x"))(folder)
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes().replace(b"PK\x01\x02", b"PK\x01\x09"))


SHARD = "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights, neither model.safetensors nor pytorch_model"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), r"model\.safetensors cannot be read"),
        (many_names, "begins with 90000000 bytes of names, and no model's weights do"),
        (pickled({"a": RunsCode()}), "a pickle with more in it than tensors, which could run code"),
        (old_pickle, "a pickle with more in it than tensors, which could run code"),
        (long_pickle, "names tensors in 8388609 bytes or more, and no model's weights do"),
        (zipped(many_members), r"names tensors in \d{7} bytes or more, and no model's weights do"),
        (long_list, "names tensors in 1099511627776 bytes or more, and no model's weights do"),
        (zipped(lambda held: held.writestr("a/data.pkl", bytes(9 * 2**20))), "names tensors in 9437184 bytes"),
        (zipped(lambda held: held.writestr("a/data.pkl", b"x"), compression=zipfile.ZIP_DEFLATED), "is compressed"),
        (zipped(lambda held: held.writestr("a/data.pkl", b"x")), r"pytorch_model\.bin (is broken|cannot be read)"),
        (cut_list, r"pytorch_model\.bin cannot be read"),
        (pickled({"a": torch.ones(1).expand(2**40)}), "says of a that it is larger than what is stored of it"),
        (pickled({"a": 1}), "something else than tensors by name"),
        (sharded(lambda f: (f / SHARD).unlink()), f"lacks 1 of 2 shards: get {SHARD}"),
        (index_says(lambda places: places.pop(NORM)), f"{NORM} stands in model-0000.*, and the index does not say so"),
        (index_says(lambda places: places.update(spare=SHARD)), f"spare is listed in {SHARD}, which does not hold it"),
        (index_says(lambda places: places.update(spare="../x.safetensors")), "names shards outside its folder"),
        (index_says(lambda places: places.clear()), "maps no tensors to shards"),
        (spoil(lambda t: t.update({"multi_modal_projector.x": torch.ones(1)})), "of several layouts"),
        (spoil(lambda t: [t.pop(name) for name in list(t) if "mm_projector" in name]), "of no layout that is read"),
    ],
)
def test_files_that_are_refused(tmp_path, stock, harm, message):
    folder = write_original(tmp_path / "checkpoint", stock)
    harm(folder)
    refused(folder, tmp_path / "run", message)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not valid JSON"), ("[1]", "is not a JSON object"), (None, "there is no ")]
)
def test_a_configuration_that_cannot_be_read(tmp_path, stock, text, message):
    folder = write_original(tmp_path / "checkpoint", stock)
    (folder / "config.json").unlink()
    if text:
        (folder / "config.json").write_text(text)
    refused(folder, tmp_path / "run", message)


def test_a_configuration_of_any_size(tmp_path, stock, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "_JSON_LIMIT_BYTES", 10)
    refused(write_original(tmp_path / "checkpoint", stock), tmp_path / "run", "larger than such a file can be")
