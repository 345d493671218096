"""The door to the models: importing it registers the classes with transformers' Auto classes, and does nothing else."""

from __future__ import annotations

from mvlm_core.modeling.model import MvlmConfig, MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmImageProcessor, MvlmProcessor

__all__ = ["MvlmConfig", "MvlmForConditionalGeneration", "MvlmImageProcessor", "MvlmProcessor"]
