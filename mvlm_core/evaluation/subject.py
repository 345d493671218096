"""What is evaluated: a run or a bundle, checked with its scales and options before hours are spent on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.runtime.artefact import sha256_file
from export.runtime.errors import MvlmError
from mvlm_core.modeling.scales import family_scales, parse_scales, require_scales

from .model_args import read_model_args

_SAID_ELSEWHERE = {"run", "bundle", "scale", "router", "answers"}


@dataclass(frozen=True)
class Subject:
    """A run, or a bundle, and how it is opened. `sha256` is that of its weights, or of its manifest."""

    folder: Path
    is_bundle: bool
    sha256: str
    options: Mapping[str, Any]

    def model_args(self, scale: str, answers: str) -> str:
        """As `--model_args` of lmms-eval takes it."""
        told = self.told(scale) | {"answers": answers}
        return ",".join(f"{key}={value}" for key, value in told.items())

    def told(self, scale: str) -> dict[str, Any]:
        left_out = {"batch_size"} | ({"router"} if scale != "auto" else set())
        options = {key: value for key, value in self.options.items() if key not in left_out}
        return {"bundle" if self.is_bundle else "run": self.folder.absolute(), "scale": scale, **options}

    @property
    def batch_size(self) -> int:
        """lmms-eval hands this to every model beside its own arguments."""
        return int(self.options.get("batch_size", 1))


def read_subject(folder: Path, scales: Sequence[str], router: Path | None, further: str) -> Subject:
    """Raises `MvlmError`: neither run nor bundle, a scale that it has not, no router for auto, an unknown option."""
    is_bundle = (folder / "bundle.json").is_file()
    options = _options(further) | ({"router": router.absolute()} if router else {})
    if not is_bundle and not folder.is_dir():
        raise MvlmError(f"there is no run and no bundle {folder}: name the folder of `mvlm train` or `mvlm export`")
    numbers = parse_scales(",".join(scale for scale in scales if scale != "auto")) if set(scales) != {"auto"} else ()
    sha256 = (_check_bundle if is_bundle else _check_run)(folder, numbers, auto="auto" in scales, router=router)
    subject = Subject(folder, is_bundle, sha256, options)
    for scale in scales:
        read_model_args(subject.told(scale) | {"batch_size": options.get("batch_size", 1)})
        if "," in "".join(map(str, subject.told(scale).values())):
            raise MvlmError("a comma stands in a path or an option, and lmms-eval ends it there: name it otherwise")
    return subject


def _check_bundle(folder: Path, scales: Sequence[int], *, auto: bool, router: Path | None) -> str:
    from export.runtime.manifest import read_manifest

    manifest = read_manifest(folder)
    if router:
        raise MvlmError(f"{folder} is a bundle, which holds its own router: leave --router out")
    if auto and manifest.router is None:
        raise MvlmError(f"{folder} holds no router, so it knows no auto: name scales by number")
    missing = [scale for scale in scales if scale not in manifest.scales]
    if missing:
        offered = ", ".join(map(str, manifest.scales))
        raise MvlmError(f"{folder} has no scale {', '.join(map(str, missing))}: it has {offered}")
    return manifest.sha256


def _check_run(folder: Path, scales: Sequence[int], *, auto: bool, router: Path | None) -> str:
    from export.runtime.routing.router_folder import read_router
    from mvlm_core.checkpoints.run_folder import model_sha256, run_config

    config, sha256 = run_config(folder), model_sha256(folder)
    require_scales(scales, family_scales(config.connector, config.grid_side, config.num_queries))
    if auto:
        if router is None:
            raise MvlmError("auto asks a router: name its folder with --router, or leave auto out of --scales")
        return sha256 + sha256_file(read_router(router, sha256).folder / "router.json")
    return sha256


def _options(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part]
    wrong = [key for key, equals, _ in pairs if not equals]
    if wrong:
        raise MvlmError(f"--model-args {wrong[0]!r} is not key=value, as in batch_size=8,device=cuda")
    options = {key: value for key, _, value in pairs}
    if said := _SAID_ELSEWHERE & set(options):
        raise MvlmError(f"--model-args names {', '.join(sorted(said))}, which other options say: leave it out")
    return options
