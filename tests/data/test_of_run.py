"""The rows of a run, as its configuration says them."""

from pathlib import Path

from mvlm_core.data.of_run import rows_for, run_rows


def test_rows_are_found_from_the_runs_folder(tmp_path):
    (tmp_path / "run").mkdir()
    assert run_rows(tmp_path / "run") is None
    assert rows_for(tmp_path / "run", None) == Path("rows")
    (tmp_path / "run" / "train.yaml").write_text("rows: ../my.jsonl\n")
    assert run_rows(tmp_path / "run") is None  # they are gone
    (tmp_path / "my.jsonl").write_text("")
    assert rows_for(tmp_path / "run", None).resolve() == tmp_path / "my.jsonl"
    assert rows_for(tmp_path / "run", Path("others")) == Path("others")
    (tmp_path / "run" / "train.yaml").write_text("- a list\n")
    assert run_rows(tmp_path / "run") is None
