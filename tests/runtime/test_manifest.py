"""A bundle that is not whole is refused in one line, whatever is wrong with it."""

from __future__ import annotations

import json
import shutil

import pytest

from export.runtime import MvlmError, Runtime, bundle_files
from export.runtime.artefact import sha256_file
from export.runtime.manifest import SEAL, read_manifest, seal
from tests.support.bundles import pool_bundle
from tests.support.tiny import SCALES

EVERY_FILE = [
    "bundle.json", "chat_template.jinja", *(f"connector_{m}.onnx" for m in SCALES), "decoder.onnx", "router.onnx",
    "tokenizer.json", "vision.onnx", "weights.bin",
]  # fmt: skip


@pytest.fixture
def bundle(tmp_path):
    return shutil.copytree(pool_bundle().bundle, tmp_path / "bundle")


def edit(bundle, change, *, sealed: bool = True) -> None:
    """Change the manifest, and seal it again as only an exporter (or an attacker) would."""
    file = bundle / "bundle.json"
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value | ({SEAL: seal(value)} if sealed else {})))


def refused(bundle, says: str) -> None:
    with pytest.raises(MvlmError, match=says) as caught:
        Runtime.load(bundle)
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)


def test_the_bundle_itself_is_in_order(bundle):
    assert sorted(path.name for path in bundle.iterdir()) == sorted(EVERY_FILE)
    manifest = read_manifest(bundle)
    assert manifest.scales == (1, 4, 9, 36, 144)
    assert manifest.family == "pool"


@pytest.mark.parametrize("name", EVERY_FILE)
@pytest.mark.parametrize("place", [0.2, 0.5, 0.97])
def test_one_byte_changed(bundle, name, place):
    data = bytearray((bundle / name).read_bytes())
    at = int(place * len(data))
    while name.endswith(".json") and chr(data[at]).isspace():  # white space between JSON values means nothing
        at += 1
    data[at] ^= 1
    (bundle / name).write_bytes(data)
    refused(bundle, "bundle|JSON")


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_file_missing(bundle, name):
    (bundle / name).unlink()
    refused(bundle, name.replace(".", r"\."))


def test_all_that_is_wrong_is_said_at_once(bundle):
    (bundle / "vision.onnx").unlink()
    (bundle / "decoder.onnx").write_bytes(b"")
    refused(bundle, r"decoder\.onnx was changed, vision\.onnx is missing")


def test_no_bundle(tmp_path):
    refused(tmp_path / "absent", "holds no bundle")


def test_a_newer_version(bundle):
    edit(bundle, lambda value: value.update(format_version=3))
    refused(bundle, "upgrade mvlm")


def test_an_edited_description(bundle):
    edit(bundle, lambda value: value.update(max_length=100_000), sealed=False)
    refused(bundle, "was changed after export")


@pytest.mark.parametrize("outside", ["../secret", "/etc/hostname", "a/../../secret"])
def test_a_path_outside(bundle, outside):
    (bundle.parent / "secret").write_text("x")
    edit(bundle, lambda value: value["files"].update({outside: {"sha256": "0", "bytes": 1}}))
    refused(bundle, "outside the bundle")


def test_a_link_that_leads_outside(bundle):
    (bundle / "vision.onnx").rename(bundle.parent / "vision.onnx")
    (bundle / "vision.onnx").symlink_to(bundle.parent / "vision.onnx")
    refused(bundle, "outside the bundle")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda value: value.pop("graphs"), "not in order"),
        (lambda value: value.update(scales=["x"]), "not in order"),
        (lambda value: value.update(scales=[]), "no scales"),
        (lambda value: value.update(files=[]), "not in order"),
        (lambda value: value["router"].update(scales=[], costs=[]), "a cost above 0"),
        (lambda value: value["router"].update(costs=[0, 1, 1, 1, 1]), "a cost above 0"),
        (lambda value: value["router"].update(costs=[1]), "a cost above 0"),
        (lambda value: value["router"].update(scales=[1, 4, 9, 36, 64]), "fitted for 1 to 64 tokens"),
        (lambda value: value["router"].update(scales=[2, 4, 9, 36, 144]), "fitted for 2 to 144 tokens"),
        (lambda value: value.update(tokenizer="other.json"), r"no hash for other\.json"),
        (lambda value: value["embedding"].update(offset=10**12), "embedding table"),
        (lambda value: value["embedding"].update(dtype="float64"), "embedding table"),
        (lambda value: value["embedding"].update(scale_dtype="float64"), "embedding table"),
        (lambda value: value.update(feature_version=99), "features of version 99"),
        (lambda value: value.update(prompt=[{"image": True}]), "0 for a question"),
        (lambda value: value.update(prompt=[{"picture": True}]), "prompt of the bundle is not in order"),
    ],
)
def test_a_description_that_makes_no_sense(bundle, change, says):
    edit(bundle, change)
    refused(bundle, says)


def test_too_many_files(bundle, monkeypatch):
    monkeypatch.setattr(bundle_files, "_MOST_FILES", 3)
    refused(bundle, "at most 3 are read")


def test_a_tokenizer_that_is_none(bundle):
    (bundle / "tokenizer.json").write_text("{}")
    reseal(bundle, "tokenizer.json")
    refused(bundle, "no tokenizer")


def test_a_graph_that_is_none(bundle):
    (bundle / "decoder.onnx").write_bytes(b"nonsense")
    reseal(bundle, "decoder.onnx")
    refused(bundle, "cannot be opened")


def reseal(bundle, name: str) -> None:
    facts = {"sha256": sha256_file(bundle / name), "bytes": (bundle / name).stat().st_size}
    edit(bundle, lambda value: value["files"].update({name: facts}))
