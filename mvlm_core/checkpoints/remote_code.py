"""A run carries its code: transformers loads it with `trust_remote_code=True` where this package is not installed.

What is written are the sources themselves, with no change but their imports of each other: transformers copies files
that stand side by side and are imported relatively, so each becomes `mvlm_<module>.py`. `modeling_mvlm.py` takes the
installed package where there is one, and them where there is none.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from export.runtime.artefact import write_json

_ENTRY = "modeling_mvlm"
# The Auto classes, what each finds, and in which file of a run it looks for the way there.
_AUTO_CLASSES = {
    "config.json": {"AutoConfig": "MvlmConfig", "AutoModelForImageTextToText": "MvlmForConditionalGeneration"},
    "processor_config.json": {"AutoProcessor": "MvlmProcessor", "AutoImageProcessor": "MvlmImageProcessor"},
    "preprocessor_config.json": {"AutoImageProcessor": "MvlmImageProcessor"},
}
_ROOT = Path(__file__).parents[2]
_MODEL = "mvlm_core/modeling/model.py"
_IMPORT = re.compile(r"^from (\.|(?:mvlm_core|export)\.[\w.]*?)(\w+) import ", re.MULTILINE)


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
    sources: dict[Path, str] = {}
    wanted = [_ROOT / _MODEL]
    while wanted:
        file = wanted.pop()
        source = file.read_text(encoding="utf-8")
        sources[file] = _IMPORT.sub(r"from .mvlm_\2 import ", source)
        for room, module in _IMPORT.findall(source):
            folder = file.parent if room == "." else _ROOT.joinpath(*room.split("."))
            if folder / f"{module}.py" not in sources:
                wanted.append(folder / f"{module}.py")
    files = {f"mvlm_{file.stem}.py": source for file, source in sources.items()}
    if len(files) < len(sources):
        raise ValueError(f"two modules of the model's code share a name: {sorted(map(str, sources))}")
    return {f"{_ENTRY}.py": _entry(), **dict(sorted(files.items()))}


def _entry() -> str:
    names = sorted({ours for classes in _AUTO_CLASSES.values() for ours in classes.values()})
    return (
        '"""The classes of an mvlm run: the installed package\'s where there is one, else those that lie beside."""\n\n'
        f"try:\n    from mvlm_core.model import {', '.join(names)}\n"
        f"except ModuleNotFoundError:\n    from .mvlm_model import {', '.join(names)}\n\n"
        f"__all__ = {json.dumps(names)}\n"
    )
