"""The store: idempotent submissions, guarded changes of state, events in order, across connections."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynosim.errors import StudyError
from dynosim.service.store import Store


def test_an_idempotency_key_names_one_study(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.add("a", {"space": "tiny"}, "key")
    assert store.add("b", {"space": "tiny"}, "key") == first
    assert store.add("c", {"space": "tiny"}, None).id == "c"
    assert store.add("d", {"space": "tiny"}, None).id == "d"
    assert [study.id for study in store.studies()] == ["d", "c", "a"]
    with pytest.raises(StudyError, match="no study 'b'"):
        store.get("b")


def test_a_state_changes_only_from_where_it_may(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add("a", {}, None)
    assert not store.move("a", "running", only_from=("interrupted",))
    assert store.move("a", "running", only_from=("queued", "interrupted"))
    assert store.get("a").state == "running"


def test_events_keep_their_order_and_survive_a_new_process(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for study_id in ("a", "b"):
        store.add(study_id, {}, None)
    for number in range(3):
        store.publish("a", "trial.completed", {"number": number})
        store.publish("b", "trial.completed", {"number": number})
    store.finish("a", "failed", "why")

    events = Store(tmp_path).events("a")
    assert [event.data.get("number") for event in events] == [0, 1, 2, None]
    assert [event.id for event in events] == sorted({event.id for event in events})
    assert events[-1].type == "study.finished"
    assert events[-1].data == {"state": "failed", "error": "why"}
    assert store.events("a", after=events[1].id) == events[2:]
    assert (store.get("a").state, store.get("a").error) == ("failed", "why")
