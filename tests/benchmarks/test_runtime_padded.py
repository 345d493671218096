"""The padded model of benchmarks/runtime/__main__.py: larger, and every logit is what it was."""

from __future__ import annotations

import pytest
import torch

from benchmarks.runtime.padded import padded_run
from mvlm_core.checkpoints.run_folder import load_run
from tests.support.tiny import QUESTIONS, drawn_picture, tiny_model, tiny_processor


def test_what_is_added_changes_no_logit_and_a_smaller_size_is_refused(tmp_path):
    processor = tiny_processor()
    model = tiny_model(processor=processor)
    model.save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    text = model.config.text_config
    padded_run(tmp_path / "run", tmp_path / "padded", text.num_hidden_layers + 2, 2 * text.intermediate_size)
    larger, _ = load_run(tmp_path / "padded")
    batch = processor(images=drawn_picture(0), text=processor.ask(QUESTIONS[0]), num_visual_tokens=9)
    with torch.inference_mode():
        torch.testing.assert_close(larger(**batch).logits, model.eval()(**batch).logits, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="layers of"):
        padded_run(tmp_path / "run", tmp_path / "less", text.num_hidden_layers - 1, text.intermediate_size)
