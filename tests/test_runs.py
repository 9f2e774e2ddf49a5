import json

import pytest

from snnkit.errors import RunFolderError
from snnkit.runs import Run, environment


def test_without_a_path_fresh_numbered_folders_are_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = Run.create(None, "digits"), Run.create(None, "digits")
    assert [str(run.path) for run in (first, second)] == ["runs/digits-1", "runs/digits-2"]
    assert first.path.is_dir()
    with pytest.raises(RunFolderError, match="no run to resume"):
        Run.create(None, "digits", resume=True)


def test_a_folder_that_is_not_empty_is_refused_and_force_removes_only_a_runs_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    run = Run(tmp_path)
    run.last.write_bytes(b"x")
    run.exports.mkdir()
    (run.exports / "a.onnx").write_bytes(b"x")
    with pytest.raises(RunFolderError) as error:
        Run.create(tmp_path, "digits")
    assert "--resume" in error.value.hint
    assert "--force" in error.value.hint
    Run.create(tmp_path, "digits", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(RunFolderError, match="exclude"):
        Run.create(tmp_path, "digits", force=True, resume=True)
    with pytest.raises(RunFolderError, match="is a file"):
        Run.create(tmp_path / "notes.txt", "digits")


def test_open_and_resume_need_a_run(tmp_path):
    with pytest.raises(RunFolderError, match="there is no run directory"):
        Run.open(tmp_path / "missing")
    with pytest.raises(RunFolderError, match="not a run directory"):
        Run.create(tmp_path, "digits", resume=True)
    (tmp_path / "config.yaml").write_text("name: digits")
    assert Run.create(tmp_path, "digits", resume=True).config == Run.open(tmp_path).config


def test_metrics_survive_a_cut_line_and_are_truncated_to_a_checkpoint(tmp_path):
    run = Run(tmp_path)
    for epoch in range(3):
        run.append_metrics({"epoch": epoch, "loss": 0.1 + epoch / 3})
    before = run.metrics.read_text()
    with run.metrics.open("a") as file:
        file.write('{"epoch": 3, "lo')
    assert [record["epoch"] for record in run.read_metrics()] == [0, 1, 2]
    run.truncate_metrics(3)
    assert run.metrics.read_text() == before
    run.truncate_metrics(1)
    assert run.metrics.read_text() == before.splitlines(keepends=True)[0]
    with pytest.raises(RunFolderError, match="holds 1 records"):
        run.truncate_metrics(2)


def test_environment_names_versions_and_is_json(tmp_path):
    run = Run(tmp_path)
    found = environment(("numpy", "no-such-package"))
    run.write_json(run.environment, found)
    assert json.loads(run.environment.read_text()) == found
    assert found["versions"]["numpy"] is not None
    assert found["versions"]["no-such-package"] is None
