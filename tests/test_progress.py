import io

import torch

from fedloom.params import Params
from fedloom.report.tables import size
from fedloom.runs.train_in_backend import show_updates
from fedloom.system.progress import Progress, make_passing_progress, make_progress
from fedloom.wire.messages import Update


class Clock:
    """A clock that is moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_lines_are_written_at_the_beginning_at_the_end_and_at_intervals():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, every=5.0, clock=clock)
    progress.stage("fedavg", 10)
    for step in range(10):
        clock.now += 2.0
        progress.advance(loss=float(step))
    progress.close()
    assert lines(stream) == [
        "fedavg: begins, 10 steps",
        "fedavg: 3 of 10, loss 2, about 14 s left",
        "fedavg: 6 of 10, loss 5, about 8 s left",
        "fedavg: 9 of 10, loss 8, about 2 s left",
        "fedavg: done in 20 s, loss 9",
    ]


def test_a_stage_ends_the_one_before_and_closing_twice_is_harmless():
    stream = io.StringIO()
    progress = Progress(stream, clock=Clock())
    progress.stage("a", 2)
    progress.advance()
    progress.stage("b", 0)
    progress.message("[not markup]")
    progress.close()
    progress.close()
    assert lines(stream) == [
        "a: begins, 2 steps",
        "a: stopped at 1 of 2, in 0 s",
        "b: begins, 0 steps",
        "[not markup]",
        "b: done in 0 s",
    ]


def test_quiet_writes_nothing(capsys):
    progress = make_progress(quiet=True)
    progress.stage("a", 1)
    progress.advance(loss=1.0)
    progress.message("text")
    progress.close()
    assert capsys.readouterr() == ("", "")


def test_a_pipe_gets_plain_lines_on_standard_error(capsys):
    progress = make_progress(quiet=False)
    progress.stage("a", 1)
    progress.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("a: begins")


def test_a_bar_shows_names_counts_and_figures():
    stream = io.StringIO()
    progress = Progress(stream, bar=True)
    progress.stage("fedavg [5]", 4)
    progress.advance(4, loss=0.25)
    progress.message("[not markup]")
    progress.close()
    shown = stream.getvalue()
    for word in ("fedavg [5]", "4/4", "loss 0.25", "[not markup]"):
        assert word in shown


def test_a_line_of_a_federated_method_fits_a_terminal_of_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream = io.StringIO()
    progress = Progress(stream, bar=True)
    for name in ("loading data and model", "fedavg"):
        progress.stage(name, 4)
        progress.advance(4, **({"loss": 0.80853, "up": "999.9 MB"} if name == "fedavg" else {}))
    progress.close()
    (line,) = [line for line in stream.getvalue().splitlines() if line.startswith("fedavg")]
    assert "loss 0.809, up 999.9 MB" in line and len(line.rstrip()) <= 80


def test_updates_show_their_loss_and_what_was_sent_so_far():
    lines = io.StringIO()
    update = Update(0, Params.of({"w": torch.zeros(1000)}), 1.0, metrics={"loss": 0.5})
    for sent in (True, False):
        progress = Progress(lines)
        progress.stage("fedavg" if sent else "local", 2)
        trained = show_updates(progress, sent=sent)
        trained(update)
        trained(update)
        progress.close()
    federated, alone = [line for line in lines.getvalue().splitlines() if "done" in line]
    assert f"loss 0.5, up {size(2 * update.length)}" in federated and 2 * update.length > 8000
    assert "loss 0.5" in alone and "up" not in alone


def test_passing_progress_writes_nothing_where_no_bar_can_be_drawn(capsys):
    for quiet in (True, False):
        progress = make_passing_progress(quiet)
        progress.stage("fedavg", 2)
        progress.advance(2, loss=0.5)
        progress.close()
    assert capsys.readouterr() == ("", "")


def test_a_bar_that_passes_forgets_what_was_before_it_was_closed(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    stream = io.StringIO()
    progress = Progress(stream, bar=True, passing=True)
    progress.stage("fedavg", 2)
    progress.advance(2)
    progress.close()
    before = len(stream.getvalue())
    progress.stage("fedadam", 2)
    progress.advance(1)
    progress.close()
    assert "fedadam" in stream.getvalue()[before:]
    assert "fedavg" not in stream.getvalue()[before:]
