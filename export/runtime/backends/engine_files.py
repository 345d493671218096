"""engines/<device>/engines.json: what was built of a bundle, by which TensorRT, for which GPU. `mvlm build` writes it.

An engine is a program for one version of TensorRT and one kind of GPU, so it opens only where both are here, and only
beside the bundle that it was built from.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export.runtime.artefact import describe, read_artefact, sha256_file
from export.runtime.errors import MvlmError

NAME = "engines"


@dataclass(frozen=True)
class Fingerprint:
    """What an engine depends on. When nothing of it changed, it need not be built again.

    Attributes:
        product: "tensorrt" or "tensorrt-rtx".
        capability: of the GPU, as sm87.
        gpu: its name; empty when it was not there, and any of its capability will do.
        driver: the newest CUDA that the driver knows; empty likewise.
        options: how the engines were asked for.
    """

    product: str
    version: str
    capability: str
    gpu: str
    driver: str
    bundle_sha256: str
    options: dict[str, Any]

    @property
    def device(self) -> str:
        """The name of the folder."""
        return f"{self.product}-{self.version}-{self.capability}"

    def runs_on(self, here: Fingerprint) -> bool:
        """Whether an engine of this fingerprint opens where `here` was taken."""
        same = (self.product, self.version, self.capability) == (here.product, here.version, here.capability)
        return same and self.gpu in ("", here.gpu)


@dataclass(frozen=True)
class Profile:
    """A range of prompt lengths that kernels were chosen for: positions of one step. `scales` are those it serves."""

    least: int
    likely: int
    most: int
    scales: tuple[Any, ...] = ()

    @property
    def decodes(self) -> bool:
        """Whether it is the one for single tokens."""
        return self.likely == 1


@dataclass(frozen=True)
class EngineSet:
    """The engines of a bundle on one device: a graph's file -> its engine's, and the decoder's profiles in order.

    `views_at_once` is how many views those of vision and connectors take; those for more than one have a second profile
    for that.
    """

    folder: Path
    fingerprint: Fingerprint
    files: dict[str, str]
    profiles: tuple[Profile, ...]
    views_at_once: int = 1

    def path(self, graph: str) -> Path:
        return self.folder / self.files[graph]

    def profile_for(self, steps: int) -> int:
        """The index of the profile for S = `steps` positions.

        Raises `MvlmError` for more than any of them takes.
        """
        fitting = [i for i, profile in enumerate(self.profiles) if profile.least <= steps <= profile.most]
        if not fitting:
            most = max(profile.most for profile in self.profiles)
            raise MvlmError(
                f"a prompt of {steps} positions does not fit the engines, which take up to {most}: ask in fewer words,"
                " or build again with more --question-tokens",
                code="too-long",
            )
        return min(fitting, key=lambda i: self.profiles[i].decodes != (steps == 1))


def engines_folder(bundle: Path, fingerprint: Fingerprint) -> Path:
    return bundle / "engines" / fingerprint.device


def to_json(fingerprint: Fingerprint, files: dict[str, Path], profiles: tuple[Profile, ...], **facts: Any) -> Any:
    """What engines.json holds; `files` by the graphs' names."""
    stored = {graph: {"file": path.name, "sha256": sha256_file(path)} for graph, path in files.items()}
    listed = [asdict(profile) for profile in profiles]
    return describe(NAME, fingerprint=asdict(fingerprint), files=stored, profiles=listed, **facts)


def read_engines(folder: Path, *, whole: bool = True) -> EngineSet:
    """Read what lies in one device's folder; with `whole`, hash every engine.

    Raises `MvlmError` when it is not in order, or a file is missing or changed.
    """
    facts = read_artefact(folder, NAME)
    try:
        fingerprint = Fingerprint(**facts["fingerprint"])
        stored = {str(graph): (str(at["file"]), str(at["sha256"])) for graph, at in facts["files"].items()}
        at_once = int(facts.get("views_at_once", 1))
        profiles = tuple(
            Profile(int(at["least"]), int(at["likely"]), int(at["most"]), tuple(at["scales"]))
            for at in facts["profiles"]
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:120]
        raise MvlmError(f"{folder / 'engines.json'} is not in order ({reason}): run `mvlm build` again") from None
    wrong = [name for name, _ in stored.values() if Path(name).name != name or not (folder / name).is_file()]
    if whole and not wrong:
        wrong = [name for name, sha256 in stored.values() if sha256_file(folder / name) != sha256]
    if wrong:
        names = ", ".join(sorted(wrong))
        raise MvlmError(f"{folder}: {names} is missing or was changed: run `mvlm build` again", code="changed-engines")
    return EngineSet(folder, fingerprint, {graph: name for graph, (name, _) in stored.items()}, profiles, at_once)


def find_engines(bundle: Path, here: Fingerprint) -> EngineSet:
    """The engines of a bundle for what is here.

    Raises `MvlmError` saying what there is instead: none, those of another TensorRT or GPU, or of another bundle.
    """
    folders = sorted(path.parent for path in (bundle / "engines").glob("*/engines.json"))
    if not folders:
        raise MvlmError(f"{bundle} holds no engines yet: run `mvlm build {bundle}` on this device", code="no-engines")
    found = [read_engines(folder, whole=False) for folder in folders]
    fitting = [engines for engines in found if engines.fingerprint.runs_on(here)]
    if not fitting:
        held = ", ".join(_called(engines.fingerprint) for engines in found)
        raise MvlmError(
            f"{bundle} holds engines for {held}; here is {_called(here)}: run `mvlm build {bundle}` on this device",
            code="other-engines",
        )
    engines = fitting[0]
    if engines.fingerprint.bundle_sha256 != here.bundle_sha256:
        raise MvlmError(
            f"{engines.folder} was built from another bundle: run `mvlm build {bundle}` again", code="stale-engines"
        )
    return read_engines(engines.folder)


def _called(fingerprint: Fingerprint) -> str:
    product = "TensorRT for RTX" if fingerprint.product == "tensorrt-rtx" else "TensorRT"
    gpu = f", {fingerprint.gpu}" if fingerprint.gpu else ""
    return f"{product} {fingerprint.version} ({fingerprint.capability}{gpu})"
