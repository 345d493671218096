"""What tests of labels share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny run without a configuration of how it was trained."""
    folder = tmp_path_factory.mktemp("run")
    processor = tiny_processor()
    tiny_model(processor=processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
