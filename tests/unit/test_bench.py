"""The bench's arithmetic and tables; and that its cheapest part runs and verifies. Never how fast anything is."""

from __future__ import annotations

import json
import socketserver
import threading
from array import array
from collections.abc import Callable
from itertools import chain, count
from pathlib import Path

import pytest

from bench import __main__ as bench
from bench import cost, native, plots, readme, report, scale
from bench.context import Context
from bench.measure import OURS, Bar, Comparison, Sample, Verifier, series, take_turns
from bench.native import BenchError
from bench.peers import Skipped, module


def sampler(values: list[float], ids: int = 1) -> Callable[[], Sample]:
    rest = iter(values)
    return lambda: Sample(next(rest), {"cost": 2 * ids}, ids, {"0.5": 7.0})


def comparison() -> Comparison:
    taken = take_turns({OURS: sampler([10, 20, 90]), "peer": sampler([20, 10, 30])}, 3)
    return Comparison("part", "what", "ns", taken, {"peer": Bar(0.5, True)}, {"cost": Bar(1, True, "%")})


def test_turns_interleave() -> None:
    order: list[str] = []

    def contestant(name: str) -> Callable[[], Sample]:
        def measure() -> Sample:
            order.append(name)
            return Sample(1, {}, 1)

        return measure

    take_turns({OURS: contestant("a"), "peer": contestant("b")}, 3)
    assert order == ["a", "b"] * 3


def test_series_are_medians_over_rounds() -> None:
    latencies = [{"0.5": 1.0, "1": 9.0}, {"0.5": 3.0, "1": 7.0}, {"0.5": 2.0, "1": 8.0}]
    one = series("x", [Sample(v, {"k": v + 1}, 10, latency) for v, latency in zip([4, 1, 2], latencies, strict=True)])
    assert (one.median, one.spread, one.ids) == (2, 1.5, 30)
    assert one.extra == {"k": [5, 2, 3]}
    assert one.extra_medians() == {"k": 3}
    assert one.latency_ns == {"0.5": 2.0, "1": 8.0}


def test_ratios_are_paired_by_round() -> None:
    found = comparison()
    assert found.ratios(found.series[1]) == [0.5, 2.0, 3.0]
    ours, cost, ratio = found.verdicts()
    assert (ours.value, ours.bar, ours.reached) == (20, None, None)
    assert (cost.value, cost.unit, cost.reached) == (2, "%", False)
    assert (ratio.value, ratio.peer, ratio.reached) == (2.0, "peer", False)


@pytest.mark.parametrize(
    ("bar", "reached", "missed", "text"),
    [(Bar(0.5, True), 0.5, 0.51, "≤ 0.5 ×"), (Bar(98, False, "%"), 98, 97.9, "≥ 98 %")],
)
def test_bars(bar: Bar, reached: float, missed: float, text: str) -> None:
    assert bar.reached(reached)
    assert not bar.reached(missed)
    assert str(bar) == text
    assert plots.progress(bar, reached) == 1
    assert plots.progress(bar, missed) < 1


def test_rounds_told_anew_do_not_count_their_ids_again() -> None:
    told = Comparison("part", "cost", "%", comparison().told("cost"))
    assert told.ours.values == [2, 2, 2]
    assert told.ours.ids == 0
    assert "verified unique and rising: 3." in report.markdown([comparison(), told], {}, [])


def test_no_ids_no_result() -> None:
    with pytest.raises(BenchError, match="no id was verified"):
        take_turns({OURS: sampler([1, 1], ids=0)}, 2)


@pytest.mark.parametrize("ids", [[], [1, 1], [2, 1], [1, 2, 3, 3, 4]])
def test_verifier_refuses_what_does_not_rise(ids: list[int]) -> None:
    with pytest.raises(BenchError, match="do not rise"):
        Verifier().add(array("Q", ids))


def test_verifier_refuses_what_came_before() -> None:
    verifier = Verifier()
    assert verifier.add([5, 6, 9]) == 3
    assert verifier.add_range(10, 12, 3) == 3
    assert verifier.count == 6
    with pytest.raises(BenchError, match="came again"):
        verifier.add([12, 13])
    with pytest.raises(BenchError, match="cannot lie between"):
        verifier.add_range(20, 21, 3)
    with pytest.raises(BenchError, match="cannot lie between"):
        verifier.add_range(20, 21, 0)


def test_page_and_json(tmp_path: Path) -> None:
    page = bench.publish([comparison()], {"cpu": "some"}, ["redis-server: not here"], tmp_path)
    beside, besides = page.split("## Beside the bars")[1].split("## Other ratios")
    assert "| part: what | peer | 2.00 × | 125% | ≤ 0.5 × | **no** |" in beside
    assert "| part: what |  | 20.0 ns | 400% |  |  |" in besides
    assert "- redis-server: not here" in page
    assert "cpu: some." in page
    assert (tmp_path / "results.md").read_text() == page
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["comparisons"][0]["ratios"] == {"peer": [0.5, 2.0, 3.0]}
    assert found["comparisons"][0]["series"][0]["values"] == [10, 20, 90]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.1234, "0.123"), (9.876, "9.88"), (98.76, "98.8"), (8_192_000, "8,192,000"), (123.4, "123")],
)
def test_numbers(value: float, text: str) -> None:
    assert report.number(value) == text


def test_parts_by_name_or_beginning() -> None:
    assert bench.chosen([]) == list(bench.PARTS)
    assert bench.chosen(["next-id"]) == ["next-id"]
    assert bench.chosen(["socket", "ring"]) == ["ring-c", "socket"]
    assert bench.chosen(["next"]) == ["next-id", "next-ids"]
    with pytest.raises(BenchError, match="no part rings"):
        bench.chosen(["rings"])


def test_a_missing_peer_is_named() -> None:
    with pytest.raises(Skipped, match="no_such_module"):
        module("no_such_module")


def test_c_program_reports_its_failure() -> None:
    with pytest.raises(BenchError, match="cannot connect"):
        native.run("load", "pharaoh", "/nonexistent/rpc.sock", 1, 1, 0.1)


class FakeRedis(socketserver.ThreadingUnixStreamServer):
    """Answers each INCR of a connection with the next of `values`, then with 10**6, 10**6 + 1 …"""

    daemon_threads = True

    def __init__(self, path: str, values: list[int]) -> None:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                for value in chain(values, count(10**6)):
                    while (line := self.rfile.readline()) != b"k\r\n":
                        if not line:
                            return
                    self.wfile.write(b":%d\r\n" % value)

        super().__init__(path, Handler)


@pytest.mark.parametrize(
    ("values", "connections", "what"),
    [
        ([1, 2, 2], 1, "not greater than the one before it"),
        ([3, 2], 1, "not greater than the one before it"),
        ([1, 2, 3], 2, "an id came twice"),
    ],
)
def test_load_refuses_wrong_ids(tmp_path: Path, values: list[int], connections: int, what: str) -> None:
    path = str(tmp_path / "s")
    with FakeRedis(path, values) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(BenchError, match=what):
                native.run("load", "redis", path, connections, 1, 0.1)
        finally:
            server.shutdown()


def test_quick_run_of_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemons = []
    real = Context.daemon

    def watched(self: Context) -> object:
        daemons.append(real(self))
        return daemons[-1]

    monkeypatch.setattr(Context, "daemon", watched)
    assert bench.main(["--quick", "--out", str(tmp_path), "ring-c"]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    ids, pop = found["comparisons"]
    assert (ids["what"], pop["what"]) == ("ids from one ring", "one pop, checked")
    assert ids["series"][0]["ids"] > 10_000
    assert len(ids["series"][0]["values"]) == 2
    assert all(value > 0 for one in (ids, pop) for value in one["series"][0]["values"])
    assert [daemon.workers() for daemon in daemons] == [[]]
    assert not daemons[0].directory.exists()


def test_load_counts_and_verifies_replies() -> None:
    with Context(quick=True, rounds=1) as context:
        found = native.run("load", "pharaoh", context.daemon().socket, 4, 16, 0.1)
    assert found.ids > 100
    assert found.last - found.first >= found.ids - 1
    assert found.latency_ns is not None
    assert list(found.latency_ns.values()) == sorted(found.latency_ns.values())


def test_the_readme_tells_what_was_measured() -> None:
    """Both committed runs are in its table, and each figure that falls short has its reason."""
    assert readme.main(["--check"]) == 0


def test_a_figure_that_falls_short_needs_a_reason() -> None:
    falls_short = {("part: what", "peer"): comparison().verdicts()[1]}
    with pytest.raises(KeyError, match="part: what / peer"):
        list(readme.short(falls_short))


def test_quick_runs_of_scale_and_cost() -> None:
    with Context(quick=True, rounds=1) as context:
        found = [*scale.rings(context, 3, 1), scale.connections(context, 5, 1), *scale.workers(context, 2, 1)]
        assert all(one.ours.median > 0 for one in found if not one.what.endswith(scale.CPU))
        context.end_part()
        assert {one.ours.ids > 0 for one in cost.window(context) if one.what.endswith("space")} == {True}
