"""Messages of what no test has: a GPU, a caller who leaves at that very moment, a library that changes under us."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from starlette.requests import ClientDisconnect

from export.bundle import make
from export.bundle.verify import sample_rows
from export.runtime import MvlmError
from export.runtime.backends.tensorrt_api import Tensorrt
from export.runtime.backends.tensorrt_session import TensorrtSession
from export.runtime.chat import Chats
from export.runtime.errors import CheckFailed
from export.runtime.serve.service import Service
from export.runtime.serve.worker import _nothing
from mvlm_core.backbones.processor_files import tower_settings
from mvlm_core.checkpoints.import_family import FamilyCheckpoint
from mvlm_core.commands.demo import Demo
from mvlm_core.evaluation.bundle_answerer import BundleAnswerer
from router.labels import OOD_PROBES, _ood_probes
from tests.support.tiny import tiny_model

OLD = SimpleNamespace(trt=SimpleNamespace(), version="10.3")


def test_a_tensorrt_that_cannot_build_for_another_gpu():
    with pytest.raises(MvlmError, match=r"10\.3 builds for the GPU that it stands beside only"):
        Tensorrt.for_capability(OLD, None, "sm87")


def test_a_tensorrt_that_does_not_say_what_an_engine_takes():
    with pytest.raises(MvlmError, match="does not say what memory an engine takes: upgrade mvlm"):
        Tensorrt.activation_bytes(OLD, object())


def test_an_engine_that_has_no_room():
    engine = SimpleNamespace(create_execution_context=lambda: None)
    api = SimpleNamespace(read_engine=lambda path: engine, said=lambda: "out of memory")
    with pytest.raises(MvlmError, match=r"cannot be run \(out of memory\): free memory on the device"):
        TensorrtSession(api, None, Path("vision.engine"))


def test_a_chat_template_that_leaves_pictures_out():
    chats = SimpleNamespace(ids=lambda turns: [1, 2], _manifest=SimpleNamespace(image_token_id=9))
    with pytest.raises(MvlmError, match="the chat template shows 0 of 1 pictures"):
        Chats._transcript(chats, [], [object()])


def test_a_caller_who_has_gone():
    noted: list[str] = []
    service = SimpleNamespace(
        _require_token=lambda request: None,
        journal=SimpleNamespace(note=lambda path, started, code: noted.append(code)),
    )

    async def leave(request: object) -> None:
        raise ClientDisconnect

    answer = Service.guarded(service, leave, told=str)(SimpleNamespace(url=SimpleNamespace(path="/v1")))
    assert asyncio.run(answer) == "the caller has gone"
    assert noted == ["closed"]
    assert _nothing(None).code == "closed"


def test_a_filter_that_pictures_are_not_resized_with(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"resample": 9}))
    with pytest.raises(MvlmError, match="resample is 9, and pictures are resized by"):
        tower_settings(tmp_path / "preprocessor_config.json")


def test_tensors_that_a_configuration_does_not_speak_of():
    loaded = SimpleNamespace(state_dict=lambda: {"strange": torch.zeros(1)})
    checkpoint = SimpleNamespace(
        folder="folder", loaded=loaded, family=SimpleNamespace(parts={}), config=tiny_model().config
    )
    with pytest.raises(MvlmError, match=r"(?s)holds another model than its config.json says: .*strange has no place"):
        FamilyCheckpoint.state(checkpoint)


def test_rows_without_the_question_that_a_demo_ends_with(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"split": "val", "task": "colour_of"}) + "\n")
    with pytest.raises(MvlmError, match="has no test row of the kind colour_of"):
        Demo(tmp_path, "pool", 0)._example(tmp_path)


def test_a_bundle_without_a_router_cannot_choose():
    runtime = SimpleNamespace(manifest=SimpleNamespace(scales=(1, 9)), router=None)
    with pytest.raises(MvlmError, match="holds no router: name a scale, one of 1, 9"):
        BundleAnswerer(runtime, "auto")


def test_tags_of_patches_without_the_picture():
    with pytest.raises(MvlmError, match="word_tags say what patches show: give the pixel_values too"):
        tiny_model()._word_loss(None, [], None, None)


def test_probes_that_are_not_those_of_the_labels(tmp_path):
    (tmp_path / OOD_PROBES).write_bytes(b"others")
    with pytest.raises(MvlmError, match="is missing or was changed since it was written: label again"):
        _ood_probes(tmp_path, {"files": {OOD_PROBES: "0" * 64}})


def test_rows_that_ask_about_no_picture_alone():
    with pytest.raises(MvlmError, match="no row asks about a picture: name others"):
        sample_rows([], 3)


def test_when_no_precision_passes_all_reasons_are_told(tmp_path, monkeypatch):
    def refuse(source, wanted, rows, precision, *named, **more):
        raise CheckFailed(f"{precision} loses too much")

    monkeypatch.setattr(make, "_make", refuse)
    monkeypatch.setattr(make, "read_source", lambda *named: None)
    monkeypatch.setattr(make, "read_rows", lambda rows: [])
    monkeypatch.setattr(make, "sample_rows", lambda rows, count: [])
    wanted = make.Wanted(tmp_path, tmp_path, None, None, "ort-cpu", make.AUTO, None, 1)
    with pytest.raises(CheckFailed, match=r"no precision passes: .*; .* loses too much"):
        make.make_bundle(wanted, tmp_path / "bundle", overwrite=False, start=lambda *named: None)


def test_an_error_in_an_evaluation_names_task_and_sample():
    naming = pytest.importorskip("mvlm_core.evaluation.lmms_model", exc_type=ImportError)._naming
    with pytest.raises(MvlmError, match="task mme, sample 3: broken"), naming(SimpleNamespace(args=(3, "mme", "test"))):
        raise MvlmError("broken")
