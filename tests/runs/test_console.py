import io
import math
import os

import pytest

from pgcli.runs.console import is_plain, open_console
from pgcli.runs.numbers import duration, number
from pgcli.runs.screen import ASCII, UNICODE, Curve, Progress, bins, chart, sample_line, screen

ROW = {
    "rollout/return_mean": 187.3,
    "policy/entropy": 0.61,
    "policy/approx_kl": 0.004,
    "policy/clip_fraction": 0.12,
    "loss/policy": -0.01,
    "loss/value": 12.3,
    "value/explained_variance": 0.9,
    "optimiser/learning_rate": 1e-3,
    "time/collect": 0.3,
    "time/update": 0.1,
    "time/evaluate": 0.0,
    "time/write": 0.0,
    "time/steps_per_second": 28400.0,
}
EVALUATED = {"eval/return_mean": 201.0, "eval/greedy_return_mean": 488.0}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def row(step, **more):
    return {"step": step, "update": step, **ROW, **more}


def console(stream, clock, *, plain=True, quiet=False, total_steps=300_000, unit="steps"):
    return open_console(
        title="ppo on CartPole-v1",
        total_steps=total_steps,
        unit=unit,
        quiet=quiet,
        stream=stream,
        plain=plain,
        clock=clock,
    )


def lines_of(out):
    """What was written after the title."""
    title, *lines = out.getvalue().splitlines()
    assert title == "ppo on CartPole-v1"
    return lines


def progress_of(*rows, total_steps=1000, seconds=1.0):
    progress = Progress(title="ppo on CartPole-v1 " + "x" * 200, total_steps=total_steps, unit="steps", began=0.0)
    for i, r in enumerate(rows):
        progress.add(r, i * seconds)
    return progress


# ---------------------------------------------------------------- lines


def test_a_line_says_step_return_evaluation_policy_speed_and_time():
    clock, out = Clock(), io.StringIO()
    with console(out, clock) as c:
        clock.now += 8.8
        c.log(row(24_576, **EVALUATED))
    assert lines_of(out) == [
        "step 24,576/300,000 (8%)  return 187.3  eval 201.0 (greedy 488.0)  entropy 0.61  kl 0.004  "
        "28,400 steps/s  8.8 s"
    ]


def test_behind_an_evaluation_stand_the_true_reward_and_the_divergence():
    out, measured = io.StringIO(), EVALUATED | {"eval/gold": 1.57, "eval/kl": 3.43}
    with console(out, Clock()) as c:
        c.log(row(1, **measured))
    assert "eval 201.0 (greedy 488.0)  gold 1.57  KL to reference 3.43  entropy" in out.getvalue()
    text = screen(progress_of(row(1, **measured)), 1.0, 90, 30, UNICODE).plain
    assert "greedy 488.0   gold 1.57   KL to reference 3.43   at 1" in text
    trained = screen(progress_of(row(1, **measured | {"eval/gold": 201.0})), 1.0, 90, 30, UNICODE).plain
    assert "gold" not in trained, "it is the return"


def test_lines_come_at_once_then_once_a_second_and_at_every_evaluation():
    clock, out = Clock(), io.StringIO()
    c = console(out, clock)
    for step, elapsed, more in (
        (1, 0.0, {}),
        (2, 0.5, {}),
        (3, 0.9, EVALUATED),
        (4, 1.8, {}),
        (5, 1.9, {}),
        (6, 2.0, {}),
    ):
        clock.now = 100.0 + elapsed
        c.log(row(step, **more))
    # At once; not yet; an evaluation; 0.9 s after it; exactly 1 s after it; too soon again.
    assert [line.split("/")[0] for line in lines_of(out)] == ["step 1", "step 3", "step 5"]


def test_the_last_row_is_shown_when_the_console_closes_and_only_once():
    clock, out = Clock(), io.StringIO()
    c = console(out, clock)
    c.log(row(1))
    c.log(row(2))
    c.close()
    c.close()
    c.log(row(3))
    assert [line.split("/")[0] for line in lines_of(out)] == ["step 1", "step 2"]


def test_a_long_run_says_less_than_a_line_a_second():
    clock, out = Clock(), io.StringIO()
    c = console(out, clock)
    for second in range(1000):
        clock.now = 100.0 + second
        c.log(row(second + 1))
    # A hundredth of the time that has passed: after 950 s, the row that comes 9.5 s later or next after that.
    steps = [int(line.split("/")[0].removeprefix("step ").replace(",", "")) for line in lines_of(out)]
    assert steps[:3] == [1, 2, 3]
    assert steps[-1] - steps[-2] == 10


def test_a_row_without_a_finished_episode_keeps_the_last_return():
    clock, out = Clock(), io.StringIO()
    c = console(out, clock)
    c.log(row(1, **{"rollout/return_mean": math.nan}))
    clock.now += 1
    c.log(row(2, **{"rollout/return_mean": 20.0}))
    clock.now += 1
    c.log(row(3, **{"rollout/return_mean": math.nan}))
    first, second, third = lines_of(out)
    assert "return" not in first
    assert "return 20.00" in second
    assert "return 20.00" in third


def test_tokens_are_counted_as_tokens():
    out = io.StringIO()
    with console(out, Clock(), unit="tokens") as c:
        c.log(row(1))
    assert "28,400 tokens/s" in out.getvalue()


def test_a_note_stays_and_quiet_says_nothing():
    clock, out, silent = Clock(), io.StringIO(), io.StringIO()
    with console(out, clock) as c:
        c.note("warning: [checkpoint] skipped")
    with console(silent, clock, quiet=True) as c:
        c.log(row(1, **EVALUATED))
        c.note("warning")
    assert lines_of(out) == ["warning: [checkpoint] skipped"]
    assert silent.getvalue() == ""


@pytest.mark.parametrize("plain", [True, False])
def test_a_closed_pipe_silences_the_console_and_stops_nothing(plain):
    read, write = os.pipe()
    clock = Clock()
    stream = os.fdopen(write, "w")
    c = console(stream, clock, plain=plain)
    c.log(row(1))
    os.close(read)
    for step in range(2, 6):
        clock.now += 10
        c.log(row(step))
    c.note("still here")
    c.close()
    with pytest.raises(BrokenPipeError):
        stream.close()  # its buffer still holds what could not be said


SAMPLES = [
    {"prompt": "once", "completion": "a brave\ndog " * 9, "finished": True, "reward": 0.98, "kl": 1.25},
    {"prompt": "twice", "completion": "a cat", "finished": False, "reward": -1.0},
]


def test_samples_are_printed_behind_their_evaluation_if_they_are_asked_for():
    for wanted, count in ((True, 3), (False, 1)):
        out = io.StringIO()
        with open_console(
            title="ppo on CartPole-v1", total_steps=9, unit="tokens", samples=wanted, stream=out, plain=True
        ) as c:
            c.log(row(1, **EVALUATED))
            c.samples(SAMPLES)
            c.samples([])
        assert len(lines_of(out)) == count
    assert sample_line(SAMPLES[0]).startswith("   0.98  kl 1.25    once | a brave dog a brave dog")
    assert sample_line(SAMPLES[1]) == "  -1.00   twice | a cat (cut)"


def test_the_screen_shows_samples_below_as_far_as_there_is_room():
    progress = progress_of(row(7, **EVALUATED))
    bare = screen(progress, 1.0, 60, 40, UNICODE).plain.split("\n")
    progress.samples = SAMPLES
    shown = screen(progress, 1.0, 60, 40, UNICODE).plain.split("\n")
    assert shown[: len(bare)] == bare
    assert shown[len(bare) + 1] == " reward   completions of the evaluation at 7"
    assert shown[-1] == sample_line(SAMPLES[1])
    assert max(map(len, shown)) == 60
    assert shown[-2].endswith("…")
    # With a curve of one row, 12 rows without them: in 16 there is room for one, in 15 for none.
    assert [len(screen(progress, 1.0, 60, height, UNICODE).plain.split("\n")) for height in (15, 16, 17)] == [
        12,
        15,
        16,
    ]


def test_lines_are_for_pipes_continuous_integration_and_dumb_terminals():
    terminal = Terminal()
    assert not is_plain(terminal, {"TERM": "xterm-256color"})
    assert not is_plain(terminal, {"TERM": "xterm-256color", "NO_COLOR": "1", "CI": ""})
    assert is_plain(terminal, {"TERM": "dumb"})
    assert is_plain(terminal, {"TERM": "xterm-256color", "CI": "true"})
    assert is_plain(io.StringIO(), {"TERM": "xterm-256color"})


# ---------------------------------------------------------------- the screen


def test_no_line_of_the_screen_is_wider_than_the_terminal():
    rows = [row(i * 10, **EVALUATED, **{"rollout/return_mean": 1e6 * math.sin(i)}) for i in range(1, 60)]
    progress = progress_of(*rows)
    for width in range(20, 130):
        for glyphs in (UNICODE, ASCII):
            lines = screen(progress, 60.0, width, 30, glyphs).plain.split("\n")
            assert max(len(line) for line in lines) <= width
            assert len(lines) <= 15
            assert lines[1].endswith(" s left") or width < 40


def test_a_narrow_terminal_drops_columns_from_the_right():
    def shown(width):
        text = screen(progress_of(row(1)), 1.0, width, 30, UNICODE).plain
        return [name for name in ("entropy", "policy loss", "learning rate") if name in text]

    # Columns of 28 with gaps of 3: two need 59, three need 90.
    assert shown(40) == ["entropy"]
    assert shown(59) == ["entropy", "policy loss"]
    assert shown(90) == ["entropy", "policy loss", "learning rate"]


def test_the_time_bar_shares_its_cells_as_the_seconds_do():
    text = screen(progress_of(row(1), row(2)), 1.0, 57, 30, UNICODE).plain
    bar = text.split("\n")[-2]
    # `28,400 steps/s   ` takes 17 of 57 columns; 40 are left for 0.6 s : 0.2 s = 30 : 10.
    assert bar.count("█") == 30
    assert bar.count("▓") == 10
    assert "collect 75%" in text
    assert "update 25%" in text


def test_time_left_is_measured_from_the_first_row_so_that_a_resumed_run_is_not_promised_too_much():
    # Resumed: 100 steps in 10 s, from 800 to 900 of 1000; 100 more take 10 s. From step 0 it would be 1.1 s.
    progress = progress_of(row(800), row(900), seconds=10.0)
    assert progress.seconds_left(10.0) == 10.0


def test_a_row_with_nothing_but_a_step_can_be_shown():
    assert "nan" not in screen(progress_of({"step": 5}), 1.0, 80, 30, UNICODE).plain


def test_without_episodes_the_curve_is_that_of_the_evaluations():
    bare = {"step": 1, "eval/return_mean": 0.25}
    text = screen(progress_of(bare, bare | {"step": 2, "eval/return_mean": 0.75}), 1.0, 80, 30, ASCII).plain
    assert "0.75 " in text
    assert "0.25 " in text
    assert "#" in text


def test_the_screen_is_drawn_eight_times_a_second_at_most(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    clock, out = Clock(), Terminal()
    c = console(out, clock, plain=False)
    written = []
    for i in range(16):
        clock.now = 100.0 + i / 16
        before = len(out.getvalue())
        c.log(row(i + 1))
        written.append(len(out.getvalue()) > before)
    c.close()
    assert written == [True, False] * 8


def test_no_color_leaves_no_colour(monkeypatch):
    def drawn():
        out = Terminal()
        with console(out, Clock(), plain=False) as c:
            c.log(row(1, **EVALUATED))
        return out.getvalue()

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[36m" in drawn()  # cyan
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[36m" not in drawn()
    assert "collect 75%" in drawn()


def test_another_encoding_gets_ascii():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with console(stream, Clock(), plain=False) as c:
        c.log(row(1))
        c.note("a · dot")
    stream.flush()
    assert b"a ? dot" in raw.getvalue()
    assert b"#" in raw.getvalue()


# ---------------------------------------------------------------- small things


def test_chart_by_hand():
    # Three levels: empty, half, full. Two rows are four half-levels; the lowest value keeps one, the highest has four.
    assert chart([0.0, 1.0], 1, " ab") == ["ab"]
    assert chart([0.0, 1.0], 2, " ab") == [" b", "ab"]
    assert chart([3.0, 3.0], 1, " ab") == ["bb"]


def test_bins_are_means_of_neighbours():
    assert bins([1.0, 3.0, 5.0, 7.0], 2) == [2.0, 6.0]
    assert bins([1.0, 3.0], 5) == [1.0, 3.0]
    assert bins([], 5) == []


def test_a_full_curve_halves_itself_and_its_points_stay_means_of_equally_many():
    curve = Curve(limit=4)
    for value in range(1, 9):
        curve.add(float(value))
    # 1 2 3 4 -> 1.5 3.5; then pairs 5.5 and 7.5 -> 2.5 6.5, four values each.
    assert curve.points == [2.5, 6.5]
    assert curve.stride == 4


def test_numbers_and_durations_are_short():
    assert [number(x) for x in (12345.6, 187.32, 12.345, 0.6123, 0.0, 3e-4, -0.01, math.nan)] == [
        "12,346", "187.3", "12.35", "0.612", "0", "3.0e-04", "-0.01", "nan",
    ]  # fmt: skip
    assert [duration(x) for x in (8.84, 245.0, 7500.0)] == ["8.8 s", "4 min 05 s", "2 h 05 min"]
