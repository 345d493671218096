"""One table of what connector families allow and nest; names of earlier versions are read, and said once."""

import pytest

from export.runtime import families
from export.runtime.families import FAMILIES, POOLED, PREFIX_NESTED, current_name
from mvlm_core.modeling.scales import family_scales
from mvlm_core.train.model_config import ModelConfig


def test_every_family_is_in_the_table():
    assert set(FAMILIES) >= PREFIX_NESTED | POOLED
    assert [list(family_scales(name, 4, 5)) for name in FAMILIES] == [[1, 4, 16], list(range(1, 17)), [1, 2, 3, 4, 5]]


def test_the_earlier_name_of_nested_pool_is_read_with_one_line(capsys):
    families._say_renamed.cache_clear()
    assert [current_name(name) for name in ("haar", "haar", *FAMILIES)] == ["nested_pool", "nested_pool", *FAMILIES]
    assert capsys.readouterr().err == "note: the connector haar is called nested_pool now; it is read as that\n"


def test_a_configuration_of_before_is_read():
    parts = {"vision": {"model_type": "resnet"}, "text": {"model_type": "qwen3"}}
    assert ModelConfig(**parts, connector="haar").connector == "nested_pool"
    with pytest.raises(ValueError, match="nested_pool"):
        ModelConfig(**parts, connector="hair")


def test_a_run_of_before_is_read():
    from mvlm_core.model import MvlmConfig

    held = MvlmConfig(connector="nested_pool").to_dict() | {"connector": "haar"}
    assert MvlmConfig.from_dict(held).connector == "nested_pool"
