"""What the runtime needs, seen from a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.bundles import pool_bundle
from tests.support.tiny import QUESTIONS

ROOT = Path(__file__).parents[2]
HEAVY = ["torch", "transformers", "sklearn", "lightgbm", "pandas", "pyarrow", "onnx", "mvlm_core", "router", "scipy"]
BLOCK = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def fresh(code: str) -> dict:
    """Run code in a new interpreter that knows nothing of the training side; it prints JSON."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return json.loads(run.stdout)


def test_the_blocker_blocks():
    code = (
        BLOCK + "\ntry:\n    import torch\nexcept ModuleNotFoundError as error:\n    print('[\"' + error.name + '\"]')"
    )
    assert fresh(code) == ["torch"]


def test_first_answer_without_the_training_side():
    made = pool_bundle()
    code = (
        BLOCK
        + f"""
import json
from export.runtime import Runtime
answer = Runtime.load({str(made.bundle)!r}).ask({str(made.picture(0))!r}, {QUESTIONS[0]!r})
print(json.dumps({{"scale": answer.num_visual_tokens, "ids": answer.token_ids}}))
"""
    )
    first = fresh(code)
    assert first["scale"] in made.source.scales
    assert len(first["ids"]) == 32


def test_the_shared_modules_load_no_engine():
    code = (
        BLOCK
        + """
import json
import export.runtime.errors, export.runtime.artefact, export.runtime.features, export.runtime.image
print(json.dumps(sorted(set(sys.modules) & {"onnxruntime", "tokenizers", "click"})))
"""
    )
    assert fresh(code) == []


def test_the_verbs_of_the_runtime_load_no_torch():
    code = """
import json, sys
import export.commands.ask, export.commands.device, export.commands.make
print(json.dumps(sorted(set(sys.modules) & {"torch", "transformers", "onnx", "onnxruntime"})))
"""
    assert fresh(code) == []


def test_mvlm_run_without_the_training_side():
    """Without mvlm_core's own dependencies, that is: the group of verbs is a module of it."""
    made = pool_bundle()
    arguments = ["run", str(made.picture(0)), QUESTIONS[0], "--bundle", str(made.bundle), "--json"]
    code = BLOCK.replace("'mvlm_core', ", "") + f"\nfrom mvlm_core.cli import main\nmain({arguments!r})"
    assert fresh(code)["num_visual_tokens"] in made.source.scales
