"""What a stage may be told."""

import pytest
from pydantic import ValidationError

from mvlm_core.train.stages import StageConfig


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, "needs steps or epochs"),
        ({"steps": 1, "epochs": 1.0}, "needs steps or epochs"),
        ({"steps": 1, "pictures": 5, "accumulate": 2}, "5 pictures cannot be cut into 2 equal passes"),
        ({"steps": 1, "loss": "patches", "lora": {"rank": 2, "alpha": 2}}, "nothing to adapt"),
        ({"steps": 1, "matrix_lr": 0.1, "lora": {"rank": 2, "alpha": 2}}, "leave matrix_lr out"),
        ({"steps": 1, "frozen": ["language_model"], "lora": {"rank": 2, "alpha": 2}}, "leave it out of frozen"),
        ({"steps": 1, "frozen": ["vision_tower", "connector", "language_model"]}, "every part is frozen"),
        ({"steps": 1, "loss": "patches", "evaluate_every": 1}, "leave evaluate_every out"),
        ({"steps": 1, "betas": [0.9, 1.0]}, "less than 1"),
        ({"steps": 1, "name": "../elsewhere"}, "should match pattern"),
        ({"steps": 1, "show": []}, "at least 1 item"),
        ({"steps": 1, "task_weights": {"a": 0}}, "greater than 0"),
    ],
)
def test_what_does_not_fit_together(told, message):
    with pytest.raises(ValidationError, match=message):
        StageConfig(**{"name": "a"} | told)
