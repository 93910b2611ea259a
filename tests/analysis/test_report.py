"""What a user reads: a table that fits, files that others can read, a command that loads no torch."""

import csv
import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from pgcli.analysis import compare
from pgcli.analysis.plots import plot
from pgcli.analysis.report import as_csv, as_markdown, as_table, columns, fitting, short, sparkline
from pgcli.analysis.verdict import figure, with_interval
from pgcli.cli.compare import compare as command
from pgcli.errors import InputError

APP = typer.Typer()
APP.command()(command)


@pytest.fixture
def paths(write_runs):
    return write_runs("ppo", [470, 480, 490, 500]) + write_runs("a2c", [-1200, -1100, -1000, -900])


@pytest.fixture
def run(monkeypatch):
    def call(*arguments, width=80):
        monkeypatch.setenv("COLUMNS", str(width))
        result = CliRunner().invoke(APP, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    return call


def test_no_label_is_ever_broken_to_make_room(paths):
    from rich.console import Console

    found = compare(paths)
    for width in range(40, 140):
        console = Console(width=width)
        with console.capture() as captured:
            console.print(as_table(found, width))
        assert captured.get().count("4 seeds, 200 steps") == 2, width


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_table_fits_and_the_verdict_comes_last(paths, run, width):
    # Three lines of heading, then the best group.
    *table, verdict = run(*paths, width=width).splitlines()
    table = [line for line in table if not line.startswith("note: ")]
    assert max(map(len, table)) <= width
    assert verdict.startswith("ppo beats a2c on CartPole-v1: ")
    assert "algo=ppo" in table[3]


def test_a_wider_terminal_shows_more_down_to_the_curve(paths):
    found = compare(paths)
    shown = [[heading for heading, _ in fitting(found, width)] for width in (40, 80, 200)]
    assert len(shown[0]) < len(shown[1]) < len(shown[2]) == len(columns(found))
    assert shown[2][-1] == "mean curve"


def test_intervals_stand_in_brackets_and_never_is_a_word(paths):
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as captured:
        console.print(as_table(compare(paths), 120))
    text = captured.get()
    assert "[470, 500]" in text.replace("  ", " ")
    assert "never" in text
    assert "3 of 4" in text


def test_json_is_all_there_is_on_stdout(paths, run):
    data = json.loads(run(*paths, "--json"))
    assert data["verdict"].startswith("ppo beats a2c")


def test_csv_has_a_row_for_each_group_and_environment(paths, run, tmp_path, write_runs):
    run(*paths, *write_runs("ppo", [1, 2, 3], slug="acrobot"), "--csv", tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["group"], row["environment"], row["seeds"]) for row in rows] == [
        ("algo=ppo", "CartPole-v1", "4"), ("algo=ppo", "Acrobot-v1", "3"), ("algo=a2c", "CartPole-v1", "4"),
    ]  # fmt: skip
    assert float(rows[0]["final_iqm"]) == 485
    assert rows[2]["median_steps_to_threshold"] == "inf"
    assert rows[1]["threshold"] == ""


def test_markdown_is_a_table_with_every_column(paths, run):
    text = run(*paths, "--markdown")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert text == as_markdown(compare(paths)) + "\n"


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_curves_are_drawn_as_png_and_svg(paths, run, tmp_path, suffix, begins):
    run(*paths, "--plot", tmp_path / f"curves{suffix}")
    assert (tmp_path / f"curves{suffix}").read_bytes().startswith(begins)


def test_a_plot_that_cannot_be_written_is_refused(paths, tmp_path):
    found = compare(paths)
    with pytest.raises(InputError, match=r"\.png or \.svg"):
        plot(found, tmp_path / "curves.bmp")
    with pytest.raises(InputError, match="cannot write"):
        plot(found, tmp_path / "nowhere" / "curves.png")


def test_one_run_can_be_shown_and_drawn(write_run, run, tmp_path):
    text = run(write_run("ppo", 0, [10.0, 20.0]), "--plot", tmp_path / "one.png")
    assert "ppo on CartPole-v1: IQM of the final return 20, mean 20; " in text


@pytest.mark.parametrize(
    ("seeds", "title"),
    [
        ((2, 2), "mean"),
        ((2, 3), "mean, 95% band (about 75% with 3 seeds)"),
        ((4, 5), "mean, 95% band (about 86% with 4 seeds)"),
        ((5, 6), "mean, 95% band"),
    ],
)
def test_the_legend_says_how_far_a_band_can_be_trusted(write_runs, tmp_path, seeds, title):
    for algo, n in zip(("ppo", "a2c"), seeds, strict=True):
        write_runs(algo, [20.0 + i for i in range(n)])
    plot(compare([tmp_path / "runs"]), tmp_path / "curves.svg")
    assert f">{title}<" in (tmp_path / "curves.svg").read_text()


def test_a_group_with_one_evaluation_is_a_point_in_a_plot(write_runs, tmp_path):
    def marks():
        plot(compare([tmp_path / "runs"]), tmp_path / "curves.svg")
        return (tmp_path / "curves.svg").read_text().count("<use")

    for algo in ("ppo", "a2c"):
        write_runs(algo, [20.0, 30.0])
    of_axes = marks()
    for file in (tmp_path / "runs").glob("*ppo*/metrics.jsonl"):
        file.write_text(file.read_text().splitlines()[-1] + "\n")
    assert marks() > of_axes


def test_numbers_of_one_environment_have_the_digits_that_they_need(write_runs):
    found = compare([*write_runs("ppo", [0.58, 0.34, 0.61]), *write_runs("a2c", [-1200, -900, -1500], slug="acrobot")])
    cells = {heading: cells for heading, _, cells in columns(found)}
    assert [cell[0] for cell in cells["final return\nmean"]] == ["0.51", "-1,200"]
    # The worst of each environment is the lowest bar, and its best the highest.
    assert {(cell[0][0], cell[0][-1]) for cell in cells["mean curve"]} == {("▁", "█"), ("█", "▁")}


def test_a_sparkline_goes_from_the_lowest_to_the_highest_bar():
    import numpy as np

    assert sparkline(np.array([0.0, 35.0, 70.0]), 0, 70) == "▁▅█"  # 3.5 is rounded to even: the fifth bar
    assert sparkline(np.array([5.0, 5.0]), 5, 5) == "▁▁"


def test_numbers_have_the_digits_that_tell_them_apart():
    from pgcli.analysis.statistics import Estimate

    assert with_interval([Estimate(498.2, 489.4, 500), Estimate(402, 351, 447)]) == ["498 [489, 500]", "402 [351, 447]"]
    assert with_interval([Estimate(0.912, 0.85, 0.96)]) == ["0.91 [0.85, 0.96]"]
    assert with_interval([Estimate(-1187.5)]) == ["-1,188"]
    assert [figure(x) for x in (110.3, 0.1234, 8.83, 0, 1204.4)] == ["110", "0.12", "8.8", "0", "1,204"]
    assert [short(x) for x in (300_000, 41_234, 1_250_000, 8.83)] == ["300k", "41.2k", "1.25M", "8.83"]


def test_comparing_loads_no_torch_and_draws_with_matplotlib_only_on_demand(paths):
    code = (
        "import sys; from pgcli.analysis import compare; import pgcli.cli.compare; from pgcli.analysis import report\n"
        f"report.as_csv(compare({[str(path) for path in paths]}))\n"
        "print(sorted({'torch', 'matplotlib', 'gymnasium', 'hydra', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_csv_leaves_out_what_cannot_be_given(write_run):
    (row,) = csv.DictReader(as_csv(compare([write_run("ppo", 0, [10.0])])).splitlines())
    assert (row["final_mean"], row["final_mean_low"], row["reached"]) == ("10.0", "", "0")
