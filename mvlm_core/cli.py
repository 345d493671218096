"""The group `mvlm`: each verb is a name here, and its module is imported when the verb is called."""

from __future__ import annotations

import difflib
import errno
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import click

from export.runtime.errors import MvlmError

VERBS = {
    "data": "mvlm_core.commands.data:data",
    "init": "mvlm_core.commands.init:init",
    "import": "mvlm_core.commands.checkpoints:import_",
    "train": "mvlm_core.commands.train_label:train",
    "label": "mvlm_core.commands.train_label:label",
    "fit-router": "router.commands.verbs:fit_router",
    "report": "router.commands.verbs:report",
    "benchmark": "mvlm_core.commands.benchmark:benchmark",
    "export": "export.commands.make:export",
    "export-checkpoint": "mvlm_core.commands.checkpoints:export_checkpoint",
    "build": "export.commands.device:build",
    "bench": "export.commands.device:bench",
    "verify": "export.commands.make:verify",
    "run": "export.commands.ask:run",
    "chat": "export.commands.chat:chat",
    "serve": "export.commands.ask:serve",
    "demo": "mvlm_core.commands.train_label:demo",
}
# Verbs of earlier versions, and what they are called now.
_RENAMED = {"eval": "benchmark", "evaluate": "report"}
# Which extra brings a package that a verb may miss.
_EXTRA_OF = {
    **dict.fromkeys(["torch", "transformers", "accelerate", "datasets", "pydantic", "yaml", "safetensors"], "train"),
    **dict.fromkeys(["sklearn", "lightgbm", "matplotlib", "pyarrow"], "router"),
    **dict.fromkeys(["onnx", "onnxscript"], "export"),
    "onnxruntime": "cpu",
    **dict.fromkeys(["starlette", "uvicorn", "prometheus_client"], "serve"),
}


_OF_PATHS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
    errno.EEXIST,
)  # fmt: skip


class _Verbs(click.Group):
    """Imports a verb's module when the verb is called, and turns every expected error into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in _RENAMED:
            raise click.UsageError(f"`mvlm {name}` is called `mvlm {_RENAMED[name]}` now")
        if name not in VERBS:
            near = difflib.get_close_matches(name, VERBS, n=1)
            raise click.UsageError(f"there is no verb {name!r}" + (f": did you mean {near[0]}?" if near else ""))
        module, attribute = VERBS[name].split(":")
        return getattr(importlib.import_module(module), attribute)

    def run(self, args: Sequence[str]) -> None:
        """Run one verb as if it was typed; errors are raised."""
        super().main(list(args), prog_name="mvlm", standalone_mode=False)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> NoReturn:
        try:
            super().main(args, *rest, **{**options, "standalone_mode": False})
        except MvlmError as error:
            _fail(str(error), error.exit_status)
        except click.ClickException as error:
            _fail(error.format_message(), error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _fail("stopped", 130)
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if package not in _EXTRA_OF:
                raise
            _fail(f'{package} is not installed: pip install "mvlm[{_EXTRA_OF[package]}]"', 2)
        except Exception as error:
            if _of_a_path(error):
                _fail(f"{error.filename} cannot be used ({error.strerror}): name another path, or mend this one", 2)
            if not _says_full_disk(error):
                raise
            reason = str(error).split("\n")[0][:120]
            _fail(f"the disk takes no more ({reason}): make room, and run it again (train: with --resume)", 2)
        sys.exit(0)


def _of_a_path(error: BaseException) -> TypeGuard[OSError]:
    """Whether a path that was named is not what it should be, or not for us."""
    return isinstance(error, OSError) and error.filename is not None and error.errno in _OF_PATHS


def _says_full_disk(error: BaseException) -> bool:
    """Whether a file could not be written to its end. Python says so by a number, safetensors and torch in words."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    words = (*(f"(os error {number})" for number in numbers), "PytorchStreamWriter failed", "unexpected pos")
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    return any(said in str(error) for said in words)


def _rescored(labels: Path, metrics: Sequence[str]) -> Any:
    """Labels scored by other metrics, for the verbs of the router, which knows none itself."""
    from mvlm_core.label.rescored import rescored

    return rescored(labels, metrics)


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(status)


@click.group(cls=_Verbs)
@click.version_option(package_name="mvlm")
@click.pass_context
def main(context: click.Context) -> None:
    """Vision-language models whose image costs as many tokens as the question needs.

    The verbs, in order, are the pipeline; each ends by naming the next.

    \b
    Example:
      mvlm demo --out demo
    """
    context.obj = _rescored


if __name__ == "__main__":
    main()
