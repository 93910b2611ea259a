import subprocess

import pytest

from pgcli.runs import provenance


@pytest.fixture
def repository(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-b", "main")
    (tmp_path / "code.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    return tmp_path


def test_a_clean_tree_has_a_commit_and_no_diff(repository):
    (repository / "runs").mkdir()
    (repository / "runs" / "new").write_text("untracked")
    found, diff = provenance.git(repository / "runs")
    assert len(found["sha"]) == 40
    assert (found["branch"], found["dirty"], diff) == ("main", False, b"")


def test_the_diff_of_a_dirty_tree_is_what_changed(repository):
    (repository / "code.py").write_text("x = 2\n")
    found, diff = provenance.git(repository)
    assert found["dirty"] is True
    assert b"-x = 1\n+x = 2\n" in diff


def test_a_huge_diff_is_cut_and_says_so(repository, monkeypatch):
    monkeypatch.setattr(provenance, "DIFF_LIMIT", 50)
    (repository / "code.py").write_text("x = 2\n" * 100)
    found, diff = provenance.git(repository)
    assert len(diff) == 50
    assert found["diff"].startswith("the first 50 of ")


def test_a_program_that_the_repository_names_is_not_run(repository):
    subprocess.run(["git", "config", "diff.external", f"touch {repository}/executed; :"], cwd=repository, check=True)
    (repository / "code.py").write_text("x = 2\n")
    assert b"+x = 2" in provenance.git(repository)[1]
    assert not (repository / "executed").exists()


def test_without_a_repository_a_commit_or_git_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git(tmp_path) == (None, b"")
    subprocess.run(["git", "init"], cwd=tmp_path, check=True, capture_output=True)
    assert provenance.git(tmp_path) == (None, b"")
    monkeypatch.setenv("PATH", "")
    assert provenance.git(tmp_path) == (None, b"")


def test_a_run_keeps_the_diff(new_run, repository, monkeypatch):
    (repository / "code.py").write_text("x = 3\n")
    monkeypatch.chdir(repository)
    assert b"+x = 3" in (new_run().path / "git.diff").read_bytes()


def test_versions_name_what_decides_a_result():
    assert {"python", "torch", "numpy", "gymnasium", "hydra-core"} <= provenance.versions().keys()
