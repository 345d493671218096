"""Work that can be stopped: its parts lie beside the folder that is asked for until all are there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from export.runtime.artefact import write_json


def parts_folder(out: Path, key: dict[str, Any]) -> Path:
    """The folder of parts beside `out`. `key` says what they are parts of; those of anything else are thrown away."""
    folder = out.absolute().with_name(f".{out.name}.parts")
    file = folder / "key.json"
    if not file.is_file() or json.loads(file.read_text()) != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(file, key)
    return folder
