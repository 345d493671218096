"""`mvlm fit-router` and `mvlm report` as a person types them, and the report that they leave."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from onnx import numpy_helper
from PIL import Image

import router.fit.write
from router.report.plots import joined
from tests.support.labels_maker import FLAT, NOISE, PICTURE_DECIDES, Recipe, alter, make_labels, quick, write_rows

QUESTION = 'is the <b>large</b> "one" here & red?'


@pytest.fixture(scope="module", autouse=True)
def _quickly():
    with quick():
        yield


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def pictures(page):
    """The pictures inside a page, opened: of the plots, and of the examples."""
    found = {"plot": [], "example": []}
    for image in page.all("img"):
        head, data = image["src"].split(",", 1)
        assert re.fullmatch(r"data:image/(png|jpeg|webp|gif);base64", head)
        opened = Image.open(io.BytesIO(base64.b64decode(data)))
        opened.load()
        found["plot" if image.get("class") == "plot" else "example"].append(opened)
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Labels with their rows, router and report, by the commands themselves: (folder, what each printed)."""
    from click.testing import CliRunner

    from mvlm_core.cli import main

    folder = tmp_path_factory.mktemp("done")
    make_labels(folder / "labels", Recipe(rows=2400, groups=240))
    write_rows(folder / "labels", QUESTION)
    said = []
    for arguments in (
        ["fit-router", folder / "labels", "--out", folder / "router"],
        ["report", folder / "router", "--labels", folder / "labels", "--out", folder / "report"],
    ):
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        said.append(result.output)
    return folder, *said


def test_fit_router_says_what_it_did_and_what_comes_next(done):
    folder, said, _ = done
    facts = json.loads((folder / "router" / "router.json").read_text())
    assert re.search(r"logistic +regret 0\.\d{4} +log loss 0\.\d{4}", said)
    assert facts["why"] in said
    assert f"default price {facts['default_price']:.3g} (mean " in said
    assert "CONSTANT" not in said
    assert said.splitlines()[-1] == f"next: mvlm report {folder / 'router'} --labels {folder / 'labels'}"


def test_evaluate_says_what_it_found_and_what_comes_next(done):
    folder, _, said = done
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["verdict"] in said
    for claim in report["claims"]:
        assert claim in said
    for policy in ("router", "lookup by task", "question only", "image only", "shuffled labels"):
        assert re.search(rf"^  {policy} +[+-]\d", said, re.MULTILINE)
    assert f"{folder / 'report' / 'index.html'}: open it" in said
    assert said.splitlines()[-1] == f"next: mvlm export --scales 1,4,9,36 --router {folder / 'router'}"


def test_bare_verbs_follow_one_another(tmp_path, monkeypatch, mvlm):
    monkeypatch.chdir(tmp_path)
    make_labels(tmp_path / "labels", Recipe(rows=240, groups=48))
    assert mvlm("fit-router").output.splitlines()[-1] == "next: mvlm report"
    assert mvlm("report").output.splitlines()[-1] == "next: mvlm export --scales 1,4,9,36"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels", "report", "router"]


def test_the_report_is_a_folder_that_says_what_it_was_made_from(done):
    folder, _, _ = done
    names = sorted(path.name for path in (folder / "report").iterdir())
    assert names == ["accuracy.png", "chosen.png", "index.html", "reliability.png", "report.json"]
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["artefact"] == "report"
    assert {"labels_sha256", "router_sha256", "versions"} <= set(report)
    assert "beats a lookup by the kind of question" in report["claims"][0]
    assert report["claims"][1].startswith("holds: the router lies above every mix of two fixed scales")
    router_at = report["policies"][0]["at"]
    assert {"budget", "mean_cost", "score", "gain", "ahead", "asked_cost", "asked_score"} == set(router_at[0])
    assert all(at["gain"]["low"] <= at["gain"]["value"] <= at["gain"]["high"] for at in router_at)


def test_the_page_needs_nothing_but_itself(done):
    folder, _, _ = done
    text = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//\w|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    page = Page(folder / "report" / "index.html")
    assert not page.all("script")
    assert not page.all("link")
    shown = pictures(page)
    assert len(shown["plot"]) == 3
    for plot, name in zip(shown["plot"], ("accuracy", "chosen", "reliability"), strict=True):
        np.testing.assert_array_equal(plot, Image.open(folder / "report" / f"{name}.png"))
    report = json.loads((folder / "report" / "report.json").read_text())
    for said in (report["verdict"], *report["claims"]):
        assert said in page.text


def test_questions_are_shown_as_they_are_and_never_as_html(done):
    folder, _, _ = done
    page = Page(folder / "report" / "index.html")
    assert page.text.count(QUESTION) >= 8
    assert "<b>large" not in (folder / "report" / "index.html").read_text()


def test_examples_show_pictures_and_answers(done):
    folder, _, _ = done
    page = Page(folder / "report" / "index.html")
    shown = pictures(page)["example"]
    assert len(shown) == len([a for a in page.all("div") if a.get("class") == "example"])
    assert 8 <= len(shown) <= 12
    assert all(picture.size == (8, 8) for picture in shown)
    assert "no longer where they were" not in page.text
    marks = [a["class"] for a in page.all("li") if "class" in a]
    assert len(marks) == 4 * len(shown)
    assert sum("chosen" in mark for mark in marks) == len(shown)
    # The marks say what is true: "right" on the answers that are, "chosen" on the scale that is named.
    text = (folder / "report" / "index.html").read_text()
    cards = re.findall(r'<div class="example">.*?right is (\w+); chosen <b>(\d+) .*?"answers">(.*?)</ul>', text)
    assert len(cards) == len(shown)
    for answer, chosen, spans in cards:
        for mark, scale, said in re.findall(r'<li class="([^"]*)"><i .*?</i>(\d+): (\w+) <small>P [01]\.\d\d<', spans):
            assert ("right" in mark, "chosen" in mark) == (said == answer, scale == chosen)


def evaluated(mvlm, folder, *more):
    result = mvlm("report", folder / "router", "--labels", folder / "labels", "--out", folder / "report", *more)
    assert result.exit_code == 0, result.output
    return result, Page(folder / "report" / "index.html")


@pytest.fixture
def pair(tmp_path, mvlm):
    """A small labels folder, its rows and its router."""
    make_labels(tmp_path / "labels", Recipe(rows=240, groups=48))
    write_rows(tmp_path / "labels", QUESTION)
    result = mvlm("fit-router", tmp_path / "labels", "--out", tmp_path / "router")
    assert result.exit_code == 0, result.output
    return tmp_path


def test_pictures_are_left_out_where_rows_are_gone_or_changed(pair, mvlm):
    rows = pair / "rows" / "rows.jsonl"
    whole = rows.read_text()
    rows.write_text(whole + "\n")
    _, page = evaluated(mvlm, pair)
    assert f"The rows ({pair / 'rows'}) have changed since they were labelled, so no pictures are shown." in page.text
    rows.unlink()
    _, page = evaluated(mvlm, pair, "--overwrite")
    assert f"The rows ({pair / 'rows'}) are no longer where they were labelled, so no pictures" in page.text
    assert not pictures(page)["example"]
    assert any("class" in item for item in page.all("li"))


def test_single_pictures_that_cannot_be_shown_are_left_out(pair, mvlm):
    """Gone, too large for a page, or of a kind that is none: the rest of the card stands."""
    folder = pair / "rows"
    for i, picture in enumerate(sorted(folder.glob("*.png"))):
        if i % 2:
            picture.unlink()
        else:
            picture.write_bytes(picture.read_bytes() + b"\0" * 200_000)
    _, page = evaluated(mvlm, pair)
    assert not pictures(page)["example"]
    assert QUESTION in page.text


def test_only_pictures_are_inlined(pair, mvlm):
    """A rows file that names another file as its picture does not carry that into a page that is passed on."""
    from export.runtime.artefact import sha256_file

    secret = pair / "secret.txt"
    secret.write_text("not a picture")
    file = pair / "rows" / "rows.jsonl"
    lines = [json.loads(line) | {"image": "../secret.txt"} for line in file.read_text().splitlines()]
    file.write_text("\n".join(map(json.dumps, lines)))
    alter(pair / "labels", facts={"rows": str(file), "rows_sha256": sha256_file(file)})
    _, page = evaluated(mvlm, pair)
    assert QUESTION in page.text
    assert not pictures(page)["example"]
    assert base64.b64encode(b"not a picture").decode()[:12] not in (pair / "report" / "index.html").read_text()


def test_a_risk_bound_is_printed_kept_or_not(pair, mvlm):
    arguments = ("fit-router", pair / "labels", "--within", "30%", "--within", "0.1%", "--confidence", "80%")
    result = mvlm(*arguments, "--out", pair / "bounded")
    assert result.exit_code == 0, result.output
    assert re.search(
        r"risk bound: within 30 points of the finest at 80 % confidence, at a mean of [\d.]+ tokens", result.output
    )
    assert "risk bound: NOT within 0.1 points of the finest at 80 % confidence" in result.output
    facts = json.loads((pair / "bounded" / "router.json").read_text())
    assert [p["price"] is None for p in facts["risk_bounds"]] == [False, True]
    assert facts["default_price"] == facts["risk_bounds"][0]["price"]


def test_agreement_is_fitted_where_there_are_no_scores_and_named(pair, mvlm):
    alter(pair / "labels", labels=lambda rows: [row | {"score": None} for row in rows])
    result = mvlm("fit-router", pair / "labels", "--out", pair / "agreeing")
    assert result.exit_code == 2
    assert "with --target agreement" in result.output
    result = mvlm("fit-router", pair / "labels", "--out", pair / "agreeing", "--target", "agreement")
    assert result.exit_code == 0, result.output
    assert (
        "scores are answers that agree with the finest scale: they do not say that an answer is right" in result.output
    )
    assert json.loads((pair / "agreeing" / "router.json").read_text())["target"] == "agreement"


@pytest.mark.parametrize(("recipe", "loud"), [(NOISE, "mixing two fixed scales"), (FLAT, "THE LADDER IS FLAT")])
def test_what_is_not_worth_a_router_is_said_loudly(tmp_path, mvlm, recipe, loud):
    make_labels(tmp_path / "labels", recipe)
    fitted = mvlm("fit-router", tmp_path / "labels", "--out", tmp_path / "router")
    assert fitted.exit_code == 0
    assert "THE ROUTER IS CONSTANT: nothing that it could see helps to choose a scale on these labels." in fitted.output
    result, page = evaluated(mvlm, tmp_path)
    assert loud in result.output
    assert loud in page.text


def test_a_picture_that_decides_is_claimed_on_the_page(tmp_path, mvlm):
    make_labels(tmp_path / "labels", PICTURE_DECIDES)
    assert mvlm("fit-router", tmp_path / "labels", "--out", tmp_path / "router").exit_code == 0
    result, page = evaluated(mvlm, tmp_path)
    claim = "holds: where the picture decides (colour, letter), reading it beats reading only the question"
    assert claim in result.output
    assert claim in page.text


def test_labels_with_faults_end_with_2_and_leave_nothing(pair, mvlm):
    alter(pair / "labels", labels=lambda rows: rows[3:])
    for arguments in (
        ("fit-router", pair / "labels", "--out", pair / "out"),
        ("report", pair / "router", "--labels", pair / "labels", "--out", pair / "out"),
    ):
        result = mvlm(*arguments)
        assert result.exit_code == 2
        assert "no label for 3 of (row, scale): r0 at 1, r0 at 4, r0 at 9" in result.output
        assert "Traceback" not in result.output
    assert not (pair / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fit-router", "absent"), "absent holds no labels.json: name the folder that the earlier verb wrote"),
        (("report", "absent"), "absent holds no router.json: name the folder that the earlier verb wrote"),
        (("fit-router", "labels", "--within", "1 percent"), "'1 percent' is no share: write 1% or 0.01"),
        (("fit-router", "labels", "--within", "0%"), "--within 0 is no loss: give one above 0 and below 100 %"),
        (("fit-router", "labels", "--within", "1%", "--confidence", "100%"), "--confidence 1 bounds nothing"),
        (
            ("fit-router", "labels", "--out-of-distribution", "-1%"),
            "--out-of-distribution -0.01 is no share of questions",
        ),
        (("fit-router", "labels", "--seed", "seven"), "'seven' is not a valid integer"),
        (("report", "labels", "--labels", "labels"), "labels holds no router.json"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(tmp_path, monkeypatch, mvlm, arguments, says):
    monkeypatch.chdir(tmp_path)
    if "labels" in arguments:
        make_labels(tmp_path / "labels", Recipe(rows=96, groups=48))
    result = mvlm(*arguments)
    assert result.exit_code == 2
    assert says in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "router").exists()


def test_a_folder_that_is_not_empty_is_kept_unless_told(pair, mvlm):
    (pair / "report").mkdir()
    (pair / "report" / "mine.txt").write_text("mine")
    before = (pair / "router" / "router.json").read_bytes()
    for arguments in (
        ("fit-router", pair / "labels", "--out", pair / "router"),
        ("report", pair / "router", "--labels", pair / "labels", "--out", pair / "report"),
    ):
        result = mvlm(*arguments)
        assert result.exit_code == 2
        assert "is not empty: name another with --out, or replace it with --overwrite" in result.output
    assert (pair / "router" / "router.json").read_bytes() == before
    assert [path.name for path in (pair / "report").iterdir()] == ["mine.txt"]
    assert mvlm("fit-router", pair / "labels", "--out", pair / "router", "--overwrite").exit_code == 0
    _, page = evaluated(mvlm, pair, "--overwrite")
    assert page.text
    assert not (pair / "report" / "mine.txt").exists()


def test_a_router_fitted_on_other_rows_ends_with_2(pair, mvlm):
    table = pq.read_table(pair / "labels" / "labels.parquet").to_pylist()
    moved = {row["group"] for row in table if row["split"] == "val"} - {"g0"}
    alter(
        pair / "labels",
        labels=lambda rows: [row | {"split": "val" if row["group"] in moved else "test"} for row in rows],
    )
    result = mvlm("report", pair / "router", "--labels", pair / "labels", "--out", pair / "report")
    assert result.exit_code == 2
    assert "was fitted on 120 rows, and they are not the 115 rows outside the test split" in result.output
    assert not (pair / "report").exists()


def test_a_graph_that_is_wrong_ends_with_1_and_leaves_nothing(pair, mvlm, monkeypatch):
    written = router.fit.write.router_graph

    def corrupted(*arguments, **named):
        model = written(*arguments, **named)
        weight = next(constant for constant in model.graph.initializer if constant.name == "intercept")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.5), "intercept"))
        return model

    monkeypatch.setattr(router.fit.write, "router_graph", corrupted)
    result = mvlm("fit-router", pair / "labels", "--out", pair / "out")
    assert result.exit_code == 1
    assert "error: router.onnx and the fitted estimator differ by" in result.output
    assert "Traceback" not in result.output
    assert not (pair / "out").exists()
    assert not list(pair.glob(".*"))


def test_lines_between_points_are_what_mixing_them_reaches():
    cost, score = joined(np.array([16.0, 1.0]), np.array([0.9, 0.5]))
    assert cost[0] == 1
    assert cost[-1] == 16
    assert len(cost) > 100
    np.testing.assert_allclose(score, 0.5 + 0.4 * (cost - 1) / 15, atol=1e-12)
    alone, at = joined(np.array([4.0]), np.array([0.7]))
    assert set(alone) == {4.0}
    assert set(at) == {0.7}
