"""Messages that hardly anything leads to, each of them made to be told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from export.runtime import MvlmError, Runtime, engine
from export.runtime.backends.onnx import Device, open_session
from export.runtime.chat_text import MARK, ChatText
from export.runtime.decode.sampling import EmbeddingTable
from export.runtime.image import ImageSpec
from export.runtime.serve.chat import Chat, Message, model_names, read_chat, single_turn
from export.runtime.serve.limits import Limits
from mvlm_core.backbones import load
from mvlm_core.data.pictures import PictureFile
from mvlm_core.scenes.patch_tags import PatchTags
from tests.support.bundles import pool_bundle

MODELS = model_names((1, 9), routed=True)


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime.load(pool_bundle().bundle, threads=1)


def test_a_graph_that_onnxruntime_cannot_open(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"no graph")
    with pytest.raises(MvlmError, match=r"a\.onnx cannot be opened \(.*\): export again, or upgrade onnxruntime"):
        open_session(tmp_path / "a.onnx", Device())


def test_a_provider_that_falls_back(tmp_path, monkeypatch):
    fallen = SimpleNamespace(get_providers=list)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *named, **more: fallen)
    with pytest.raises(MvlmError, match="does not start on this machine"):
        open_session(tmp_path / "a.onnx", Device())


def test_a_tokenizer_that_cannot_keep_a_special_token_as_text(monkeypatch):
    text = object.__new__(ChatText)
    text._tokens = ()
    monkeypatch.setattr(ChatText, "_between", lambda self, part: [1])
    monkeypatch.setattr(ChatText, "_encode", lambda self, part: [2])
    with pytest.raises(MvlmError, match=r"cannot keep .* as text"):
        text.ids(f"a {MARK}")


def test_an_id_that_the_embedding_table_has_no_row_for(runtime):
    with pytest.raises(MvlmError, match=r"names a token beyond the .* rows of the embedding table"):
        EmbeddingTable(runtime.manifest).rows([10**6])


def test_a_bundle_that_something_unforeseen_is_wrong_with(monkeypatch):
    def stumble(*named: object) -> None:
        raise ValueError("odd\nvalues")

    monkeypatch.setattr(engine, "require_passed", stumble)
    with pytest.raises(MvlmError, match=r"is not in order \(ValueError: odd values\): export again"):
        Runtime.load(pool_bundle().bundle, threads=1)


@pytest.mark.parametrize(
    ("change", "says"), [({"resample": "odd"}, "are to be resized by 'odd'"), ({"fit": "odd"}, "fit 'odd', std")]
)
def test_pictures_that_are_not_made(change, says):
    with pytest.raises(MvlmError, match=says):
        ImageSpec.from_json({"size_px": 96, "fit": "pad", "mean": [0.5] * 3, "std": [0.5] * 3} | change)


def test_half_a_character_in_a_body():
    body = b'{"model": "mvlm-9", "messages": [{"role": "user", "content": "\\ud83d"}]}'
    with pytest.raises(MvlmError, match="a message holds half a character: send whole ones"):
        read_chat(body, Limits(), MODELS)


def test_a_bundle_of_before_takes_one_question_about_one_picture():
    told = Message("user", ("what?",))
    with pytest.raises(MvlmError, match="holds 2 messages and 0 pictures: ask one question about one picture"):
        single_turn(Chat("mvlm-9", (told, told), 9, {}, False, False, ()))


def test_a_tokenizer_that_is_not_a_fast_one(monkeypatch, tmp_path):
    monkeypatch.setattr(load.AutoTokenizer, "from_pretrained", lambda *named, **more: object())
    with pytest.raises(MvlmError, match="is not a fast one"):
        load.load_tokenizer({"name": str(tmp_path)})


def test_a_picture_without_tags():
    tags = object.__new__(PatchTags)
    tags._folder, tags._index, tags._words = Path("rows"), {"0.png": 0}, {}
    assert tags.of([PictureFile(Path("rows/0.png"))]) == []
    with pytest.raises(MvlmError, match=r"1\.png has no tags in .*: the loss `patches` needs them for each"):
        tags.of([PictureFile(Path("rows/1.png"))])


def test_a_value_of_any_length_leaves_a_message_that_can_be_read():
    said = str(MvlmError(f"config.json says {'1' * 5000} of /a/folder: get it again"))
    assert said == f"config.json says {'1' * 60}... (5000 characters) of /a/folder: get it again"
