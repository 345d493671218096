"""The command line: one line for each mistake, the right exit status, and examples in every help."""

import re
import shlex

import click
import pytest
from click.testing import CliRunner

from mvlm_core import cli
from mvlm_core.cli import VERBS, main

COMMANDS = [["data", "scenes"], ["data", "check"], *([verb] for verb in VERBS if verb != "data")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_has_an_example_that_parses(command):
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0, result.output
    examples = re.findall(r"^\s+mvlm (.+)$", result.output.split("Example", 1)[1].split("Options:")[0], re.MULTILINE)
    assert examples
    for example in examples:
        words = shlex.split(example)
        assert words[: len(command)] == command
        found: click.Command = main
        for word in command:
            found = found.get_command(click.Context(main), word)
        found.make_context(example, words[len(command) :])  # raises what a person would be told


def test_the_verbs_stand_in_the_order_of_the_pipeline():
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    places = [result.output.index(f"\n  {verb} ") for verb in VERBS]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "scenes", "--train", "many"], "'many' is not a valid integer"),
        (["dance"], "there is no verb 'dance'"),
        (["exprot"], "there is no verb 'exprot': did you mean export?"),
        (["evaluate"], "`mvlm evaluate` is called `mvlm report` now"),
        (["train", "absent.yaml"], "there is no configuration absent.yaml"),
        (["label", "absent", "--scales", "9"], "absent is not a run"),
        (["label", "absent", "--scales", "nine"], "is not a list of scales"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("out", "says"), [("file/rows", "cannot be used"), ("n" * 300, "File name too long")])
def test_a_path_that_cannot_be_used_is_one_line(out, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, ["data", "scenes", "--out", out, "--train", "1", "--val", "1", "--test", "1"])
    assert result.exit_code == 2
    assert says in result.output
    assert result.output.count("\n") == 1


def test_a_missing_package_names_its_extra(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name="torch")

    monkeypatch.setattr(cli.importlib, "import_module", absent)
    result = CliRunner().invoke(main, ["train"])
    assert result.exit_code == 2
    assert 'pip install "mvlm[train]"' in result.output

    def unknown(name):
        raise ModuleNotFoundError(name="elsewhere")

    monkeypatch.setattr(cli.importlib, "import_module", unknown)
    assert isinstance(CliRunner().invoke(main, ["train"]).exception, ModuleNotFoundError)


def test_ctrl_c_is_no_traceback(monkeypatch):
    def stop(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, "import_module", stop)
    result = CliRunner().invoke(main, ["train"])
    assert result.exit_code == 130
    assert result.output.strip() == "error: stopped"
