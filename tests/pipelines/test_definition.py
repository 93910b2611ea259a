import pytest

from pgcli.cli import _completion
from pgcli.errors import InputError
from pgcli.pipelines import pipeline
from pgcli.pipelines.definition import load, names, plan


def write(conf, text):
    (conf / "pipeline" / "mine.yaml").write_text(text)


def stages(*words):
    """A file with the stages a, b, ... of these words."""
    named = zip("abcdef", words, strict=False)
    return "# Mine\nstages:\n" + "".join(f"  - {{name: {name}, words: [{own}]}}\n" for name, own in named)


def test_overrides_go_to_one_stage_or_to_all():
    words = plan(load("rlvr")[0], ["seed=3", "sft.total_steps=50", "grpo.algo.learning_rate=1e-4"])
    assert list(words) == ["sft", "grpo"]
    assert words["sft"][-2:] == ["seed=3", "total_steps=50"]
    assert words["grpo"][-2:] == ["seed=3", "algo.learning_rate=1e-4"]
    assert "init=sft" in words["grpo"]


def test_every_built_in_pipeline_can_be_planned():
    for name, title in names().items():
        definition, own = load(name)
        assert own == title != ""
        assert plan(definition, [])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (stages("algo=sft, env=sort", "algo=grpo, env=sort, init=c"), "stage b: `init=c` is neither a stage nor a run"),
        (stages("algo=sft, env=sort, init=a"), "stage a: `init=a` is itself: a stage builds on earlier ones"),
        (
            stages("algo=sft, env=sort, init=b", "algo=sft, env=sort, init=a"),
            "stage a: `init=b` is a later stage, so that neither could be first: a stage builds on earlier ones",
        ),
        (stages("algo=sft, env=sort, algo.lr=1"), "stage a: `algo.lr` is not a setting of sft; did you mean"),
        (stages("algo=sft, env=sort, runs_dir=x"), "stage a: `runs_dir=x`: a stage is a run directory inside the"),
        (stages("algo=sft, env=sort, 'seed=1,2'"), "stage a: `seed=1,2` is a sweep"),
        ("stages: []", "mine.yaml: `stages` must be "),
        ("stage: []", "mine.yaml: `stages` has no value"),
        ("stages: [{name: a, words: [x], more: 1}]", "mine.yaml: `stages.0.more` is not a setting of a pipeline"),
        ("stages: [{name: A/b, words: [x]}]", "mine.yaml: `stages.0.name` must be"),
        ("stages: [{name: algo, words: [x]}]", "mine.yaml: a stage cannot be called `algo`, as a setting is"),
        ("stages: [{name: a, words: [x]}, {name: a, words: [x]}]", "mine.yaml: two stages are called `a`"),
        (stages("algo=sft, env=sort") + "report: {baseline: b}", "`report.baseline`: no stage is called `b`"),
        (stages("algo=sft, env=sort") + "report: {best_of: [2]}", "`report.best_of` measures the baseline"),
        ("stages: [", "mine.yaml, line"),
        ("- a", "mine.yaml must hold settings (key: value)"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_refused_before_anything_is_written(conf, tmp_path, text, line):
    write(conf, text)
    with pytest.raises(InputError) as refused:
        pipeline("mine", config_dirs=[conf], pipelines_dir=tmp_path / "pipelines")
    assert line in str(refused.value).splitlines()[0]
    assert not (tmp_path / "pipelines").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["rlvrr"], "no pipeline is called `rlvrr`; did you mean `rlvr`?"),
        (
            ["rlvr", "sfft.seed=1"],
            "`sfft.seed=1`: no stage is called `sfft`; did you mean `sft`?   (stages: sft, grpo)",
        ),
        (
            ["rlvr", "total_step=3"],
            "`total_step=3`: no stage is called `total_step`; did you mean `total_steps`?   (stages: sft, grpo)",
        ),
        (["rlvr", "grpo.init=sfft"], "stage grpo: `init=sfft` is neither a stage nor a run; did you mean `sft`?"),
        (
            ["rlvr", "grpo.env=story"],
            "stage grpo: `init=sft`: its tokens are those of env=sort, and not ",
        ),
        (["rlvr", "sft.algo.lrr=1"], "stage sft: `algo.lrr` is not a setting of sft"),
    ],
)
def test_words_that_are_wrong_are_refused_in_one_line(tmp_path, words, line):
    with pytest.raises(InputError) as refused:
        pipeline(*words, pipelines_dir=tmp_path / "pipelines")
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "pipelines").exists()


def test_completion_knows_pipelines_and_their_stages():
    class Context:
        params = {"name": "rlvr"}  # noqa: RUF012

    assert ("rlvr", load("rlvr")[1]) in _completion.complete_pipeline(Context(), "rl")
    complete = [word for word, _ in _completion.complete_stage_override(Context(), "gr")]
    assert complete == ["grpo."]
    inside = [word for word, _ in _completion.complete_stage_override(Context(), "grpo.algo.gro")]
    assert inside == ["grpo.algo.group_size="]
    assert [word for word, _ in _completion.complete_stage_override(Context(), "see")] == ["seed="]
