"""A run carries its code: transformers loads it with `trust_remote_code=True` where this package is not installed.

What is written are the sources themselves, with no change but their imports of each other: transformers copies files
that stand side by side and are imported relatively, so each becomes `mvlm_<module>.py`. `modeling_mvlm.py` takes the
installed package where there is one, and them where there is none.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from export.runtime import errors
from export.runtime.artefact import write_json

_ENTRY = "modeling_mvlm"
# The Auto classes, what each finds, and in which file of a run it looks for the way there.
_AUTO_CLASSES = {
    "config.json": {"AutoConfig": "MvlmConfig", "AutoModelForImageTextToText": "MvlmForConditionalGeneration"},
    "processor_config.json": {"AutoProcessor": "MvlmProcessor", "AutoImageProcessor": "MvlmImageProcessor"},
    "preprocessor_config.json": {"AutoImageProcessor": "MvlmImageProcessor"},
}
_HERE, _RUNTIME = Path(__file__).parent, Path(errors.__file__).parent
_IMPORT = re.compile(r"^from (?:export\.runtime)?\.(\w+) import ", re.MULTILINE)


def carry_code(run: Path) -> None:
    """Write the code of its model into the folder of a run, and into its configurations where that is to be found."""
    for name, text in code_files().items():
        (run / name).write_text(text, encoding="utf-8")
    for name, classes in _AUTO_CLASSES.items():
        if (run / name).is_file():
            told = json.loads((run / name).read_text(encoding="utf-8"))
            write_json(run / name, told | {"auto_map": {auto: f"{_ENTRY}.{ours}" for auto, ours in classes.items()}})


def code_files() -> dict[str, str]:
    """The files of code by name: the model's module, all that it imports of this project, and the entry."""
    sources: dict[str, str] = {}
    wanted = [_HERE / "model.py"]
    while wanted:
        file = wanted.pop()
        source = file.read_text(encoding="utf-8")
        sources[f"mvlm_{file.stem}.py"] = _IMPORT.sub(r"from .mvlm_\1 import ", source)
        for found in _IMPORT.finditer(source):
            folder = _RUNTIME if found[0].startswith("from export") else file.parent
            if f"mvlm_{found[1]}.py" not in sources:
                wanted.append(folder / f"{found[1]}.py")
    return {f"{_ENTRY}.py": _entry(), **dict(sorted(sources.items()))}


def _entry() -> str:
    names = sorted({ours for classes in _AUTO_CLASSES.values() for ours in classes.values()})
    return (
        '"""The classes of an mvlm run: the installed package\'s where there is one, else those that lie beside."""\n\n'
        f"try:\n    from mvlm_core.model import {', '.join(names)}\n"
        f"except ModuleNotFoundError:\n    from .mvlm_model import {', '.join(names)}\n\n"
        f"__all__ = {json.dumps(names)}\n"
    )
