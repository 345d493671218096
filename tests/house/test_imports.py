"""Who may import whom (CONTRIBUTING, "The house"), proved in fresh interpreters and by reading the code.

Each rule is a function from imports to faults, so that a test can show that it fails where it should.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "sklearn", "lightgbm", "pandas", "pyarrow", "onnx", "matplotlib", "datasets"}
OURS = {"mvlm_core", "router", "export"}
# What training and device share: the runtime's own definitions, and the engine where a bundle is evaluated.
SHARED = {
    "answer", "artefact", "backends", "data_url", "decode", "durable", "engine", "errors", "families", "features",
    "chat_template", "chat_text", "image", "label_columns", "machine", "manifest", "prompt", "request", "routing",
    "view", "views",
}  # fmt: skip
# Packages of the runtime, and those that only one of its rooms or files may import.
AT_THE_EDGE = {"numpy", "onnxruntime", "tensorrt", "tokenizers", "jinja2", "PIL"}
IN_ROOMS = {
    "serve": {"starlette", "uvicorn", "prometheus_client", "anyio", "h11"}, "frames.py": {"cv2"},
    "decode": {"llguidance"},  # an extra, imported when JSON is asked for
}  # fmt: skip
# The one estimator that trains a network imports torch when it is fitted.
TORCH_IN_ROUTER = {"router/estimators/reader_training.py"}
Imports = Iterable[tuple[str, str]]  # (file, name)


def imports_of(file: Path, *, with_names: bool = False) -> Iterator[str]:
    """Absolute names of all modules that a file imports, inside functions too; also of what it takes from them."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join(filter(None, [*base, node.module]))
            yield module
            if with_names:  # a module may be taken from its package
                yield from (f"{module}.{alias.name}" for alias in node.names)


def imports(package: str) -> list[tuple[str, str]]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 5
    return [(str(file.relative_to(ROOT)), name) for file in files for name in imports_of(file)]


def faults_of_the_runtime(found: Imports) -> list[str]:
    faults = []
    for file, name in found:
        room = Path(file).relative_to("export/runtime").parts[0]
        allowed = AT_THE_EDGE | sys.stdlib_module_names | IN_ROOMS.get(room, set())
        if not (name == "export.runtime" or name.startswith("export.runtime.") or name.split(".")[0] in allowed):
            faults.append(f"{file}: {name}")
    return faults


def faults_of_the_router(found: Imports) -> list[str]:
    forbidden = {"torch", "transformers", "mvlm_core"}
    return [
        f"{file}: {name}" for file, name in found
        if (name.split(".")[0] in forbidden and not (name.split(".")[0] == "torch" and file in TORCH_IN_ROUTER))
        or (name.split(".")[0] == "export" and not name.startswith("export.runtime"))
    ]  # fmt: skip


def faults_of_the_model_side(found: Imports) -> list[str]:
    faults = []
    for file, name in found:
        parts = name.split(".")
        shared = parts[:2] == ["export", "runtime"] and (len(parts) == 2 or parts[2] in SHARED)
        if parts[0] in OURS - {"mvlm_core"} and not shared:
            faults.append(f"{file}: {name}")
    return faults


def faults_of_export(found: Imports) -> list[str]:
    return [f"{file}: {name}" for file, name in found if name.split(".")[0] == "router"]


def faults_of_the_benchmarks(found: Imports) -> list[str]:
    return [f"{file}: {name}" for file, name in found if name.split(".")[0] == "tests"]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Every module from which imports lead back to itself, with one way there."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> None:
        if module in way:
            found.append([*way[way.index(module) :], module])
        elif module not in done:
            for other in sorted(graph.get(module, ())):
                walk(other, [*way, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return found


def modules_and_their_imports() -> dict[str, set[str]]:
    """Imports between this project's modules, those under TYPE_CHECKING and inside functions included."""
    files = [file for package in sorted(OURS) for file in (ROOT / package).rglob("*.py") if file.name != "__init__.py"]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    return {
        name: {other for other in imports_of(file, with_names=True) if other in names} for name, file in names.items()
    }


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
        "import mvlm_core.commands.train_label, router.commands.verbs, export.commands.make, export.commands.ask",
    ],
)
def test_what_must_stay_light(statement):
    assert not loaded_by(statement) & HEAVY


def test_what_is_heavy_is_seen():
    assert "onnx" in loaded_by("import onnx")


RULES = {
    "the runtime imports nothing else of the project": (
        faults_of_the_runtime, "export/runtime",
        [("export/runtime/engine.py", "torch"), ("export/runtime/view.py", "export.bundle.files"),
         ("export/runtime/engine.py", "starlette"), ("export/runtime/serve/server.py", "cv2")],
    ),
    "the router knows no torch and no model": (
        faults_of_the_router, "router",
        [("router/labels.py", "torch"), ("router/fit/fit.py", "mvlm_core.scoring"),
         ("router/labels.py", "export.graphs.writer")],
    ),
    "the model side imports what it shares with the device": (
        faults_of_the_model_side, "mvlm_core",
        [("mvlm_core/cli.py", "router.labels"), ("mvlm_core/model.py", "export.bundle.make"),
         ("mvlm_core/train/recipe.py", "export.runtime.serve.server")],
    ),
    "export knows no router's fit": (faults_of_export, "export", [("export/bundle/make.py", "router.fit.fit")]),
    "the benchmarks take nothing from the tests": (
        faults_of_the_benchmarks, "benchmarks", [("benchmarks/runtime/random_models.py", "tests.support.tiny")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_the_table_of_imports(rule):
    faults, package, _ = RULES[rule]
    assert faults(imports(package)) == []


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_can_fail(rule):
    faults, _, wrong = RULES[rule]
    assert faults(wrong) == [f"{file}: {name}" for file, name in wrong]


def test_no_import_circle():
    graph = modules_and_their_imports()
    assert len(graph) > 100
    assert sum(map(len, graph.values())) > 300
    assert circles(graph) == []


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c", "b"]]


def test_importing_the_model_registers_and_seeds_nothing():
    code = "import random, torch; random.seed(1); torch.manual_seed(1); a = random.random(), torch.rand(1).item()\n"
    code += "random.seed(1); torch.manual_seed(1)\nimport mvlm_core.model, mvlm_core.train.recipe\n"
    code += "assert a == (random.random(), torch.rand(1).item())"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
