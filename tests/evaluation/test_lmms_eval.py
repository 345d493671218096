"""The plug-in of lmms-eval and the verb `eval`, end to end on tasks made from rows; tiny random models."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from export.runtime.errors import MvlmError
from mvlm_core.cli import main
from mvlm_core.evaluation.benchmarks import Benchmark, Tasks, known
from mvlm_core.evaluation.lmms_runs import Outcome, Plan, read_outcome
from mvlm_core.evaluation.model_args import read_model_args
from mvlm_core.evaluation.subject import Subject
from mvlm_core.evaluation.table import table
from tests.house.test_imports import loaded_by
from tests.support.bundles import pool_bundle

lmms_eval = pytest.importorskip(
    "lmms_eval",
    reason='lmms-eval is not installed: pip install "mvlm[benchmark]", pip install --no-deps lmms-eval==0.7.3',
)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made():
    return pool_bundle()


@pytest.fixture(scope="module")
def tasks(made, tmp_path_factory) -> Path:
    """Tasks of the tiny rows, which have several answers so that one can be chosen; and one that shows two pictures."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = shutil.copytree(made.rows, folder / "rows")
    lines = [json.loads(line) for line in (rows / "rows.jsonl").read_text().splitlines()]
    for line, answer in zip(lines, ("red", "blue", "day", "47", "3", "red"), strict=True):
        line["answers"] = [answer]
    (rows / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = subprocess.run(
        [sys.executable, "-m", "mvlm_core.cli", "data", "to-lmms-eval", "--rows", rows, "--out", folder / "tasks"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = yaml.load((folder / "tasks" / "rows.yaml").read_text().replace("!function ", ""), yaml.SafeLoader)
    text = yaml.safe_dump(two | {"task": "two_pictures"}).replace("utils.pictures", "!function utils.two")
    text = text.replace("utils.score_answer", "!function utils.score_answer")
    (folder / "tasks" / "two_pictures.yaml").write_text(text)
    choice = (folder / "tasks" / "rows_choice.yaml").read_text().replace("utils.pictures", "utils.two")
    choice = re.sub("^task: .*$", "task: two_pictures_choice", choice, flags=re.MULTILINE)
    (folder / "tasks" / "two_pictures_choice.yaml").write_text(choice)
    with (folder / "tasks" / "utils.py").open("a") as utils:
        utils.write("\n\ndef two(doc):\n    return pictures(doc) * 2\n")
    return folder / "tasks"


def results(out: Path, folder: str) -> dict:
    return json.loads(next((out / folder).glob("*_results.json")).read_text())["results"]


def samples(out: Path, folder: str) -> list[dict]:
    file = next((out / folder).glob("*_samples_*.jsonl"))
    return [json.loads(line) for line in file.read_text().splitlines()]


def losses(out: Path, folder: str) -> list[float]:
    return [float(loss) for sample in samples(out, folder) for loss, _ in sample["filtered_resps"]]


@pytest.fixture(scope="module")
def evaluated(made, tasks, tmp_path_factory) -> tuple[Path, str]:
    """A run at two scales and auto: where it lies, and what was said."""
    out = tmp_path_factory.mktemp("evaluated") / "eval"
    arguments = ["benchmark", made.run, "--scales", "1,144,auto", "--router", made.router,
                 "--tasks", "rows,rows_choice", "--include-path", tasks, "--model-args", "batch_size=2",
                 "--out", out]  # fmt: skip
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return out, done.output


def test_a_run_end_to_end_at_two_scales_and_auto(evaluated):
    """Answers and likelihoods, both at the scale; what was chosen is written down; the table is there."""
    out, said = evaluated
    for scale in ("1", "144"):
        told = [json.loads(line) for line in (out / f"scale_{scale}" / "answers.jsonl").read_text().splitlines()]
        assert [line["num_visual_tokens"] for line in told] == [[int(scale)]] * 3
        assert {line["task"] for line in told} == {"rows"}
    coarse, fine = (losses(out, f"scale_{scale}_likelihood") for scale in ("1", "144"))
    assert len(coarse) == len(fine) > 3
    assert max(abs(a - b) for a, b in zip(coarse, fine, strict=True)) > 1e-3
    assert "| benchmark |  | 1 | 144 | auto |" in said
    assert "| rows, score | measured |" in said
    facts = json.loads((out / "eval.json").read_text())
    assert facts["scores"]["rows_choice"]["acc"].keys() == {"1", "144", "auto"}
    assert (out / "table.md").read_text() in said
    chosen = [json.loads(line) for line in (out / "scale_auto" / "answers.jsonl").read_text().splitlines()]
    mean = sum(line["num_visual_tokens"][0] for line in chosen) / len(chosen)
    assert facts["mean_tokens"]["rows"]["auto"] == pytest.approx(mean)
    assert not (out.parent / ".eval.parts").exists()


def test_a_bundle_says_what_its_run_says(mvlm, made, tasks, evaluated, tmp_path):
    done = mvlm("benchmark", made.bundle, "--scales", "144", "--tasks", "rows,rows_choice", "--include-path", tasks,
                "--limit", 2, "--out", tmp_path / "eval")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "ONLY 2 SAMPLES" in done.output
    run, bundle = ([s["filtered_resps"] for s in samples(o, "scale_144")] for o in (evaluated[0], tmp_path / "eval"))
    assert run[:2] == bundle
    # Of the two spellings a bundle takes the likelier, so no loss is above the run's.
    ours, theirs = (losses(o, "scale_144_likelihood") for o in (tmp_path / "eval", evaluated[0]))
    assert all(a <= b + 1e-3 for a, b in zip(ours, theirs, strict=False))


def test_several_pictures_are_answered_by_run_and_bundle_alike(mvlm, made, tasks, tmp_path):
    told = []
    for name, model in (("run", made.run), ("bundle", made.bundle)):
        arguments = ("--scales", "9", "--include-path", tasks, "--limit", 1, "--out", tmp_path / name)
        assert mvlm("benchmark", model, "--tasks", "two_pictures", *arguments).exit_code == 0
        told.append(json.loads((tmp_path / name / "scale_9" / "answers.jsonl").read_text()))
    assert [one["num_visual_tokens"] for one in told] == [[9, 9], [9, 9]]
    said = [samples(tmp_path / name, "scale_9")[0]["filtered_resps"] for name in ("run", "bundle")]
    assert said[0] == said[1]


def test_what_a_bundle_cannot_score_ends_its_evaluation(mvlm, made, tasks, tmp_path):
    """An error becomes no empty answer: the sample is named, nothing that looks whole is left, and what ran is kept."""
    arguments = ("--scales", "9", "--include-path", tasks, "--limit", 1, "--out", tmp_path / "eval")
    failed = mvlm("benchmark", made.bundle, "--tasks", "two_pictures_choice", *arguments)
    assert failed.exit_code == 1
    assert "task two_pictures_choice, sample 0: it shows 2 pictures in 1 messages" in failed.output
    assert not (tmp_path / "eval").exists()
    assert mvlm("benchmark", made.run, "--tasks", "two_pictures_choice", *arguments).exit_code == 0


def test_stopped_and_started_again_it_goes_on(mvlm, made, tasks, tmp_path, monkeypatch):
    out = tmp_path / "eval"
    arguments = ("benchmark", made.run, "--scales", "1,9", "--tasks", "rows", "--include-path", tasks, "--limit", 1)
    started: list[list[str]] = []

    def start(parts, folders, advance):
        started.append([folder.name for folder in folders])
        for folder in folders[:1]:
            (folder / "x_results.json").write_text(
                json.dumps({"results": {"rows": {"alias": "rows", "score,none": 0.5}}})
            )
            (folder / "answers.jsonl").write_text("")
        (parts / "lmms_eval.log").write_text("Traceback\nValueError: out of milk\n")

    monkeypatch.setattr("mvlm_core.evaluation.lmms_runs._start", start)
    first = mvlm(*arguments, "--out", out)
    assert first.exit_code == 1
    assert "no results for scale_9: ValueError: out of milk" in first.output
    assert mvlm(*arguments, "--out", out).exit_code == 0
    assert started == [["scale_1", "scale_9"], ["scale_9"]]
    assert mvlm(*arguments, "--out", out).exit_code == 2
    assert mvlm(*arguments, "--out", out, "--overwrite").exit_code == 1  # other runs' parts are not taken over


def test_print_shows_the_runs_and_what_each_benchmark_needs(mvlm, made, tmp_path):
    done = mvlm(
        "benchmark", made.run, "--scales", "9,36,144", "--tasks", "paper11", "--print", "--out", tmp_path / "eval"
    )
    assert done.exit_code == 0, done.output
    runs = yaml.safe_load(done.output.split("\n#")[0])
    assert [run["output_path"] for run in runs] == ["scale_9", "scale_36", "scale_144"]
    assert all(run["tasks"].split(",").count("mme") == 1 for run in runs)
    assert (
        "MM-Vet: mmvet; test; gpt_eval_score; lmms-lab-encoder/MMVet, revision not pinned; needs a judge" in done.output
    )
    assert "next: " in done.output
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "popes"], "there is no task 'popes': did you mean pope?"),
        (["--tasks", "zzzzzzzz"], "there are paper11, m3 and lmms-eval's tasks"),
        (["--tasks", "pope", "--scales", "25"], "cannot show a picture in 25 tokens"),
        (["--tasks", "pope", "--scales", "x"], "is not a list of scales"),
        (["--tasks", "pope", "--scales", "auto"], "auto asks a router: name its folder with --router"),
        (["--tasks", "pope", "--include-path", "absent"], "there is no folder of tasks absent"),
        (
            ["--tasks", "pope", "--model-args", "bach_size=2"],
            "model_args knows no 'bach_size': did you mean batch_size?",
        ),
        (["--tasks", "pope", "--model-args", "batch_size"], "is not key=value"),
        (["--tasks", "pope", "--model-args", "batch_size=0"], "batch_size: Input should be greater than or equal to 1"),
        (["--tasks", "pope", "--model-args", "scale=1"], "--model-args names scale, which other options say"),
        (["--tasks", "pope", "--model-args", "provider=cuda"], "provider is for a bundle, and a run is named"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(mvlm, made, more, message):
    done = mvlm("benchmark", made.run, "--scales", "9", *more)
    assert done.exit_code == 2
    assert message in done.output
    assert done.output.count("\n") == 1


def test_what_is_wrong_with_a_bundle_or_a_folder(mvlm, made, tmp_path):
    for arguments, message in (
        ([made.bundle, "--scales", "25"], "has no scale 25: it has 1, 4, 9, 36, 144"),
        ([made.bundle, "--scales", "9", "--router", made.router], "is a bundle, which holds its own router"),
        ([made.bundle, "--scales", "9", "--model-args", "device=cuda"], "device is for a run, and a bundle is named"),
        ([tmp_path / "absent", "--scales", "9"], "there is no run and no bundle"),
    ):
        done = mvlm("benchmark", *arguments, "--tasks", "pope")
        assert done.exit_code == 2
        assert message in done.output
    comma = shutil.copytree(made.run, tmp_path / "a,b")
    assert "a comma stands in a path" in mvlm("benchmark", comma, "--scales", "9", "--tasks", "pope").output


def test_a_bundle_without_a_router_knows_no_auto(made, monkeypatch):
    from mvlm_core.evaluation.subject import read_subject

    monkeypatch.setattr("export.runtime.manifest._router", lambda value: None)
    with pytest.raises(MvlmError, match="holds no router, so it knows no auto"):
        read_subject(made.bundle, ["auto"], None, "")


def test_without_lmms_eval_the_message_says_how_to_install_it(mvlm, made, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = mvlm("benchmark", made.run, "--scales", "9", "--tasks", "pope")
    assert done.exit_code == 2
    assert 'pip install "mvlm[benchmark]" && pip install --no-deps lmms-eval==0.7.3' in done.output


def test_a_filelock_that_lmms_eval_cannot_start_with_is_told_before_a_model_is_loaded(mvlm, made, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "filelock._api" else find(name))
    monkeypatch.setattr("mvlm_core.evaluation.subject.read_subject", lambda *_: pytest.fail("the model was read"))
    done = mvlm("benchmark", made.run, "--scales", "9", "--tasks", "pope")
    assert done.exit_code == 2
    assert re.fullmatch(
        r'error: lmms-eval 0\.7\.3 does not start with filelock [\d.]+: pip install "filelock>=3\.16,<4"\n', done.output
    )


def test_an_installation_without_the_entry_point_is_to_be_made_again(mvlm, made, tmp_path, monkeypatch):
    monkeypatch.setattr("mvlm_core.evaluation.lmms_runs.ENTRY_POINTS", "nobody.models")
    done = mvlm("benchmark", made.run, "--scales", "9", "--tasks", "pope", "--out", tmp_path / "eval")
    assert done.exit_code == 2
    assert "installed before it had its plug-in for lmms-eval" in done.output


def test_model_args():
    told = read_model_args({"run": 1, "scale": "auto", "batch_size": "4", "max_batch_size": None})
    assert (told.run, told.scale, told.batch_size) == (Path("1"), "auto", 4)
    for wrong, message in (
        ({"run": "a"}, "scale: Field required"),
        ({"scale": 9}, "name run=FOLDER or bundle=FOLDER, one of them"),
        ({"run": "a", "bundle": "b", "scale": 9}, "name run=FOLDER or bundle=FOLDER, one of them"),
        ({"run": "a", "scale": 9, "zzzz": 1}, "there are run, bundle, scale"),
        ({"run": "a", "scale": 9, "max_new_tokens": 0}, "max_new_tokens: Input should be greater than or equal to 1"),
    ):
        with pytest.raises(MvlmError) as raised:
            read_model_args(wrong)
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)


class Request:
    def __init__(self, *args) -> None:
        self.args = args


def model(made, simple: bool, **told):
    from mvlm_core.evaluation.lmms_model import Mvlm, MvlmByDocument

    wrapped = (MvlmByDocument if simple else Mvlm)(run=str(made.run), scale=9, **told)
    wrapped.task_dict = {"t": {"test": [{"question": "what is it?", "answer": "red"}]}}
    return wrapped


def test_what_a_task_may_not_ask_for(made, monkeypatch):
    wrapped = model(made, simple=True)
    asked = ("what is it?", {"do_sample": True, "temperature": 0.7}, lambda doc: [], 0, "t", "test")
    with pytest.raises(MvlmError, match="asks for do_sample=True, and answers are greedy"):
        wrapped.generate_until([Request(*asked)])
    with pytest.raises(MvlmError, match="task t has several rounds"):
        wrapped.generate_until_multi_round([Request("x", None, 0, "t", "test")])
    with pytest.raises(MvlmError, match="acc_mutual_info"):
        wrapped.loglikelihood([Request("", "red")])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MvlmError, match="one process answers here"):
        model(made, simple=True)


def test_both_forms_and_batches_answer_alike(made):
    told = {"max_new_tokens": 5, "until": "\n\n", "do_sample": False, "temperature": 0, "num_beams": 1}
    picture = [made.picture(0)]
    by_document = Request("what is it?", told, lambda doc: picture, 0, "t", "test")
    shown = {"type": "image", "url": made.picture(0)}
    in_chat = Request("", lambda doc: [_turn(shown, doc["question"])], told, 0, "t", "test")
    one = model(made, simple=True).generate_until([by_document] * 3)
    assert one == model(made, simple=False, batch_size=2).generate_until([in_chat] * 3)
    longer = Request("what is it?", {}, lambda doc: picture, 0, "t", "test")
    short = model(made, simple=True, max_new_tokens=2).generate_until([longer, by_document])
    assert short[1] == one[0]
    assert len(short[0]) < len(short[1])
    wanted = Request("what is it?", lambda doc: doc["answer"], lambda doc: picture, 0, "t", "test")
    named = Request("what is it?", " red", lambda doc: picture, 0, "t", "test")
    (first,), (second,) = (model(made, simple=True).loglikelihood([r]) for r in (wanted, named))
    assert first.text == second.text


def _turn(shown: dict, text: str) -> dict:
    return {"role": "user", "content": [shown, {"type": "text", "text": text}]}


def test_the_manifest_is_what_lmms_eval_has():
    """Every benchmark's task, data, split and metric, in the version that is named."""
    from importlib.metadata import version

    assert known().lmms_eval == version("lmms_eval")
    folder = Path(lmms_eval.__file__).parent / "tasks"
    texts = {file: file.read_text() for file in folder.rglob("*.yaml")}
    for benchmark in known().benchmarks.values():
        found = [file for file, text in texts.items() if f"task: {benchmark.task}\n" in text.replace('"', "")]
        assert len(found) == 1, benchmark
        told = _whole(found[0])
        assert told["test_split"] == benchmark.split, benchmark
        assert told["dataset_path"] == benchmark.dataset, benchmark
        assert benchmark.metric in [metric["metric"] for metric in told["metric_list"]], benchmark
        assert "revision" not in told.get("dataset_kwargs", {}), benchmark
        assert benchmark.revision is None
    for names in known().groups.values():
        assert set(names) <= set(known().benchmarks)
    assert len(known().groups["paper11"]) == 11
    for paper in known().papers:
        assert set(paper.scores) <= set(known().benchmarks)


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_constructor("!function", lambda loader, node: node.value)


def _whole(file: Path) -> dict:
    told = yaml.load(file.read_text(), _Loader)
    return (_whole(file.parent / told["include"]) if "include" in told else {}) | told


def test_the_table_sets_the_papers_numbers_beside():
    outcome = Outcome({"gqa": {"exact_match": {"9": 0.5, "36": 0.61234, "auto": 0.6}}}, {"gqa": {"auto": 21.25}})
    told = table(outcome, [known().benchmarks["gqa"]], ["9", "36", "auto"]).splitlines()
    assert told[2] == "| GQA, exact_match | measured | 50 | 61.23 | 60 @21.2 |"
    assert told[3] == "|  | MQT-LLaVA-7B |  | 58.8 |  |"
    assert told[4] == "|  | LLaVA-1.5-7B-M3 | 58 | 60.3 |  |"
    assert any("arXiv 2405.17430, table 1" in line for line in told)
    assert any("not pinned" in line for line in told)


def test_results_are_read_back(tmp_path):
    (tmp_path / "scale_9" / "sub").mkdir(parents=True)
    metrics = {"alias": "a", "acc,none": 0.25, "acc_stderr,none": 0.1, "flag": True, "exact_match,flexible-extract": 1}
    (tmp_path / "scale_9" / "sub" / "d_results.json").write_text(json.dumps({"results": {"t": metrics}}))
    (tmp_path / "scale_9" / "answers.jsonl").write_text('{"task": "t", "sample": 0, "num_visual_tokens": [4, 9]}\n')
    outcome = read_outcome(tmp_path, [{"output_path": "scale_9"}])
    assert outcome.scores == {"t": {"acc": {"9": 0.25}, "exact_match": {"9": 1.0}}}
    assert outcome.mean_tokens == {"t": {"9": 6.5}}


def test_likelihood_tasks_run_in_the_simple_form(tasks):
    found = Tasks.of([tasks])
    assert found.likelihood("rows_choice")
    assert not found.likelihood("rows")
    assert found.likelihood("seedbench_ppl")  # its kind stands in its own file
    subject = Subject(Path("run"), False, "", {"router": Path("r")})
    plan = Plan(subject, ("9", "auto"), tuple(Benchmark(n, n, n) for n in ("rows", "rows_choice")), found, limit=3)
    runs = plan.runs()
    assert [(run["output_path"], run["force_simple"]) for run in runs] == [
        ("scale_9", False), ("scale_9_likelihood", True), ("scale_auto", False), ("scale_auto_likelihood", True),
    ]  # fmt: skip
    assert "router" not in runs[0]["model_args"]
    assert "router=r" in runs[2]["model_args"]


def test_the_entry_point_imports_nothing_of_lmms_eval():
    assert not loaded_by("import mvlm_core.evaluation.plugin, mvlm_core.commands.benchmark") & {"lmms_eval", "torch"}
    told = (ROOT / "pyproject.toml").read_text()
    assert '[project.entry-points."lmms_eval.models"]\nmvlm = "mvlm_core.evaluation.plugin:manifest"' in told
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    from mvlm_core.evaluation.plugin import manifest

    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    assert not registry.get_model_class("mvlm").is_simple
    assert registry.get_model_class("mvlm", force_simple=True).is_simple
