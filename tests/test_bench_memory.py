"""The memory benchmark, on its smallest shape."""

from __future__ import annotations

import json

import pytest

from fastserve.bench import memory


def test_sides_and_their_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "SIDES", ("fastserve", "recompute"))
    memory.memory("medium", 2, json=True)
    result = json.loads(capsys.readouterr().out)
    kept, again = (result["sides"][name] for name in ("fastserve", "recompute"))
    weights = 10.8e6 * 4
    assert kept["peak"] > kept["added"] > 4 * weights  # with AdamW's state
    assert kept["added"] - again["added"] > 20 << 20
    assert "recompute" in memory._table(result)
