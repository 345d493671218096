"""Who may import whom (design, section 3), proved in fresh interpreters and by reading the code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "sklearn", "lightgbm", "pandas", "pyarrow", "onnx", "matplotlib", "datasets"}
OURS = {"mvlm_core", "router", "export"}


def imports(file: Path) -> set[str]:
    """Absolute names of everything that a file imports, inside functions too."""
    names = set()
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            names.add(".".join(filter(None, [base, node.module])))
    return names


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import mvlm_core, router, export",
        "import mvlm_core.modeling.scales, mvlm_core.data.reading, mvlm_core.scoring, mvlm_core.scenes.draw",
        "import mvlm_core.train.config, mvlm_core.cli",
        "import export.runtime, export.runtime.features, export.runtime.image, export.runtime.errors",
        "from export.runtime import Runtime",
        "import mvlm_core.commands.train_label, router.commands.verbs, export.commands.make",
    ],
)
def test_what_must_stay_light(statement):
    assert not loaded_by(statement) & HEAVY


def test_the_runtime_imports_nothing_else_of_the_project():
    allowed = {"numpy", "onnxruntime", "tokenizers", "PIL"} | sys.stdlib_module_names
    extras = {"server.py": {"starlette", "uvicorn"}, "metrics.py": {"prometheus_client"}, "frames.py": {"cv2"}}
    files = list((ROOT / "export" / "runtime").rglob("*.py"))
    assert len(files) > 5
    for file in files:
        for name in imports(file):
            assert name.startswith("export.runtime") or name.split(".")[0] in allowed | extras.get(file.name, set()), (
                f"{file}: {name}"
            )


def test_the_router_knows_no_torch_and_no_model():
    files = list((ROOT / "router").rglob("*.py"))
    assert len(files) > 5
    for file in files:
        for name in imports(file):
            assert name.split(".")[0] not in {"torch", "transformers", "mvlm_core"}, f"{file}: {name}"
            assert not name.startswith("export") or name.startswith("export.runtime"), f"{file}: {name}"


def test_the_model_side_imports_the_bottom_of_the_house_only():
    for file in (ROOT / "mvlm_core").rglob("*.py"):
        for name in imports(file):
            if name.split(".")[0] in OURS - {"mvlm_core"}:
                assert name.startswith("export.runtime"), f"{file}: {name}"


def test_importing_the_model_registers_and_seeds_nothing():
    code = "import random, torch; random.seed(1); torch.manual_seed(1); a = random.random(), torch.rand(1).item()\n"
    code += "random.seed(1); torch.manual_seed(1)\nimport mvlm_core.modeling.model, mvlm_core.train.recipe\n"
    code += "assert a == (random.random(), torch.rand(1).item())"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
