"""The HTTP API: what a client may ask, what it gets, and what is refused."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

import dynosim
from dynosim.errors import ConfigError
from dynosim.service.guard import MAX_BODY_BYTES, MAX_TRIALS
from dynosim.service.store import Store
from dynosim.space import bundled_spaces

TINY = bundled_spaces()["tiny"]


def _events(client: Any, study_id: str, **headers: str) -> list[tuple[int, str, dict[str, Any]]]:
    """Return (id, type, data) of the whole stream, which ends because the study has."""
    blocks = client.get(f"/v1/studies/{study_id}/events", headers=headers).text.split("\n\n")
    fields = [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks if "data" in block]
    return [(int(f["id"]), f["event"], json.loads(f["data"])) for f in fields]


def _trial_events(client: Any, study_id: str) -> list[dict[str, Any]]:
    """Return the data of the trial events so far; the stream of a running study does not end."""
    stored = client.app.state.service.store.events(study_id)
    return [event.data for event in stored if event.type == "trial.completed"]


def _assert_problem(answer: Any, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    for word in words:
        assert word in answer.text


def test_a_finished_study_tells_its_trials_frontier_and_report(client: Any, finished: str) -> None:
    base = f"/v1/studies/{finished}"
    status = client.get(base).json()
    assert status["progress"]["done"] == status["progress"]["total"] == 5
    assert finished in [study["id"] for study in client.get("/v1/studies?state=completed").json()]

    trials = client.get(f"{base}/trials").json()
    assert [trial["number"] for trial in trials] == [0, 1, 2, 3, 4]
    frontier = client.get(f"{base}/frontier").json()
    assert all(trial in trials and trial["feasible"] for trial in frontier["frontier"])
    for trial in frontier["frontier"]:
        assert trial["evidence"] == "extrapolated", "the roofline"
        assert len(trial["sampling"]) == len(trial["model"]) == len(trial["values"])
    detail = client.get(f"{base}/trials/0").json()
    assert detail["scenario"]["deployment"]["aggregated"]["replicas"] == 2
    assert detail["metrics"]["completed"] == 60
    _assert_problem(client.get(f"{base}/trials/99"), 404, "no trial 99")
    assert "<!doctype html>" in client.get(f"{base}/report").text


def test_events_are_replayed_after_the_last_seen_one(client: Any, finished: str) -> None:
    events = _events(client, finished)
    ids, kinds, data = zip(*events, strict=True)
    assert list(ids) == sorted(set(ids))
    assert kinds[0] == "study.started"
    assert kinds[-1] == "study.finished"
    assert [d["number"] for d, kind in zip(data, kinds, strict=True) if kind == "trial.completed"] == [0, 1, 2, 3, 4]
    last_front = [d for d, kind in zip(data, kinds, strict=True) if kind == "front.changed"][-1]
    frontier = client.get(f"/v1/studies/{finished}/frontier").json()
    assert last_front["trials"] == [trial["number"] for trial in frontier["frontier"]]
    for seen in range(len(events)):
        assert _events(client, finished, **{"Last-Event-ID": str(ids[seen])}) == events[seen + 1 :]


def test_cancel_keeps_the_results_resume_goes_on_and_a_crash_is_contained(tmp_path: Path, make_client: Any) -> None:
    with make_client(tmp_path) as client:
        study_id = client.submit(trials=300, space=TINY.read_text())
        client.wait_for(study_id, lambda s: s["progress"].get("done", 0) >= 2)
        assert client.post(f"/v1/studies/{study_id}/cancel").status_code == 202
        done = client.wait_for(study_id, lambda s: s["state"] == "cancelled")["progress"]["done"]
        assert 2 <= done < 300
        assert len(client.get(f"/v1/studies/{study_id}/trials").json()) == done
        assert client.get(f"/v1/studies/{study_id}/report").status_code == 200

        queued = client.submit(trials=300)
        assert client.post(f"/v1/studies/{queued}/cancel").json()["state"] in ("cancelled", "cancelling")
        client.post(f"/v1/studies/{study_id}/resume")
        client.wait_for(study_id, lambda s: s["progress"]["done"] > done)
        numbers = [e["number"] for e in _trial_events(client, study_id)]
        assert numbers == sorted(set(numbers))

        (worker,) = multiprocessing.active_children()
        worker.kill()
        assert "exit code -9" in client.wait_for(study_id, lambda s: s["state"] == "failed")["error"]
        assert client.get("/healthz").json() == {"status": "ok"}


def test_a_killed_service_finds_its_studies_again(tmp_path: Path, make_client: Any, fast: list[str]) -> None:
    store = Store(tmp_path)
    store.add("study-of-a-killed-service", {"space": "tiny", "trials": 2, "overrides": fast}, None)
    store.move("study-of-a-killed-service", "running", only_from=("queued",))
    store.add("cancelled-before-the-kill", {"space": "tiny"}, None)
    store.move("cancelled-before-the-kill", "cancelling", only_from=("queued",))
    with make_client(tmp_path) as client:
        client.wait_for("study-of-a-killed-service", lambda s: s["state"] == "completed")
        assert client.get("/v1/studies/cancelled-before-the-kill").json()["state"] == "cancelled"
    assert len(dynosim.load_study("study-of-a-killed-service", tmp_path).trials) == 2


def test_stopping_the_service_interrupts_its_study(tmp_path: Path, make_client: Any) -> None:
    with make_client(tmp_path) as client:
        study_id = client.submit(trials=300)
        client.wait_for(study_id, lambda s: s["progress"].get("done", 0) >= 1)
    assert Store(tmp_path).get(study_id).state == "interrupted"


def test_an_idempotency_key_is_good_for_one_submission(tmp_path: Path, make_client: Any) -> None:
    client = make_client(tmp_path)  # not entered: nothing runs
    submission = {"space": "tiny", "trials": 3}
    first = client.post("/v1/studies", json=submission, headers={"Idempotency-Key": "k"})
    again = client.post("/v1/studies", json=submission, headers={"Idempotency-Key": "k"})
    assert again.status_code == 202
    assert again.json() == first.json()
    other = client.post("/v1/studies", json={"space": "tiny", "trials": 4}, headers={"Idempotency-Key": "k"})
    _assert_problem(other, 409, "another submission")
    assert len(client.get("/v1/studies").json()) == 1


def test_runs_of_the_command_line_are_shown(tmp_path: Path, make_client: Any, fast: list[str]) -> None:
    study = dynosim.optimize("tiny", trials=2, overrides=fast, runs_dir=tmp_path)
    client = make_client(tmp_path)
    (listed,) = client.get("/v1/studies").json()
    assert (listed["id"], listed["state"], listed["progress"]["done"]) == (study.id, "completed", 2)
    assert len(client.get(f"/v1/studies/{study.id}/trials").json()) == 2
    assert client.get(f"/v1/studies/{study.id}/page").json()["state"] == "ended"
    assert client.get(f"/v1/studies/{study.id}/events").text == ""


def test_predict_says_what_the_function_says(client: Any, fast: list[str]) -> None:
    expected = dynosim.predict("tiny", overrides=fast).metrics.to_dict()
    for config in ("tiny", TINY.read_text()):
        answer = client.post("/v1/predict", json={"config": config, "overrides": fast})
        assert answer.status_code == 200, answer.text
        assert answer.json()["metrics"] == expected
        assert answer.json()["label"] == "2xTP1"
    big = {"config": "tiny", "overrides": [*fast, "deployment.model=llama-3.1-70b"]}
    _assert_problem(client.post("/v1/predict", json=big), 422, "does not fit")


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("objectives=[{python: 'os:system'}]", "objectives.0.python"),
        ("deployment.router.policy=os:system", "deployment.router.policy"),
        ("deployment.router.policy={choices: [round_robin, 'os:system']}", "deployment.router.policy"),
        ("deployment.aggregated.scheduling_policy=os:system", "deployment.aggregated.scheduling_policy"),
        ("deployment.aggregated.autoscaler.predictor=os:system", "deployment.aggregated.autoscaler.predictor"),
        ("deployment.gpu=/etc/gpu.yaml", "deployment.gpu"),
        ("deployment.model={choices: [llama-3.1-8b, 'os:system']}", "deployment.model"),
        ("baseline.deployment.model=os:system", "baseline.deployment.model"),
        ("deployment.timing.type=os:system", "deployment.timing.type"),
        ("workload.source={type: trace, path: x, format: 'os:system'}", "workload.source.format"),
        ("optimizer.sampler=os:system", "optimizer.sampler"),
        ("optimizer.warm_start=[../elsewhere]", "optimizer.warm_start.0"),
        ("workload.source={type: trace, path: /etc/passwd}", "workload.source.path"),
        ("workload.source={choices: [{type: trace, path: ../../etc/passwd}]}", "workload.source.choices.0.path"),
        ("workload.source.requests=100000000", "workload.source.requests"),
        ("workload.source.requests={range: {min: 1, max: 100000000}}", "workload.source.requests.range.max"),
        (f"optimizer.trials={MAX_TRIALS + 1}", "optimizer.trials"),
        ("optimizer.workers=10000", "optimizer.workers"),
        ("deployment.gqu=h100_sxm", "deployment.gqu"),
    ],
)
def test_a_space_over_http_is_data(client: Any, override: str, path: str) -> None:
    answer = client.post("/v1/studies", json={"space": "tiny", "overrides": [override]})
    _assert_problem(answer, 422)
    assert answer.json()["path"].startswith(path)
    predicted = client.post("/v1/predict", json={"config": "tiny", "overrides": [override]})
    _assert_problem(predicted, 422)


def test_traces_of_the_allowed_directory_only(tmp_path: Path, make_client: Any, fast: list[str]) -> None:
    traces = tmp_path / "traces"
    traces.mkdir()
    rows = [{"timestamp": 100 * i, "input_length": 600, "output_length": 7, "hash_ids": [i, i + 1]} for i in range(9)]
    for file in (traces / "mine.jsonl", tmp_path / "other.jsonl"):
        file.write_text("\n".join(map(json.dumps, rows)))
    (traces / "link.jsonl").symlink_to(tmp_path / "other.jsonl")
    client = make_client(tmp_path / "runs", traces=traces)

    def predict(path: Path) -> Any:
        source = f"workload.source={json.dumps({'type': 'trace', 'path': str(path)})}"
        return client.post("/v1/predict", json={"config": "tiny", "overrides": [source, *fast[1:]]})

    assert predict(traces / "mine.jsonl").json()["metrics"]["completed"] == 9
    _assert_problem(predict(tmp_path / "other.jsonl"), 422, "workload.source.path")
    _assert_problem(predict(traces / "link.jsonl"), 422, "workload.source.path")


def test_code_of_the_allow_list_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_client: Any, fast: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    router = "class {}:\n    looks = False\n    def route(self, request, pool):\n        return 0\n"
    (tmp_path / "mine.py").write_text(router.format("First") + router.format("Other"))
    client = make_client(tmp_path / "runs", allow=["mine.py:First"])

    def predict(policy: str) -> Any:
        overrides = [f"deployment.router.policy={policy}", *fast]
        return client.post("/v1/predict", json={"config": "tiny", "overrides": overrides})

    assert predict("mine.py:First").json()["metrics"]["completed"] == 60
    _assert_problem(predict("mine.py:Other"), 422, "mine.py:First")
    with pytest.raises(ConfigError, match=r"--allow: .*has no 'Nobody'"):
        make_client(tmp_path / "runs", allow=["mine.py:Nobody"])


def test_what_an_earlier_server_allowed_is_not_run_by_one_that_does_not(tmp_path: Path, make_client: Any) -> None:
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    router = f"deployment.router.policy={tmp_path}/mine.py:Router"
    Store(tmp_path / "runs").add("earlier", {"space": "tiny", "trials": 1, "overrides": [router]}, None)
    with make_client(tmp_path / "runs") as client:
        status = client.wait_for("earlier", lambda s: s["state"] == "failed")
    assert "allowed over HTTP: built-ins" in status["error"]
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("section", ["prices.usd_per_gpu_hour", "budget.inventory"])
def test_keys_of_a_space_run_no_code(tmp_path: Path, client: Any, section: str) -> None:
    (tmp_path / "card.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    overrides = [f"{section}={{{tmp_path}/card.py:GPU: 1}}"]
    _assert_problem(client.post("/v1/predict", json={"config": "tiny", "overrides": overrides}), 422, section)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("space", ["/etc/passwd", "../tiny.yaml", str(TINY), "nothing"])
def test_a_space_name_is_never_a_file(client: Any, space: str) -> None:
    _assert_problem(client.post("/v1/studies", json={"space": space}), 422, "no such space")


def test_errors_name_the_field(client: Any) -> None:
    wrong = TINY.read_text().replace("replicas: {choices: [1, 2, 3, 4]}", "replicas: many")
    answer = client.post("/v1/studies", json={"space": wrong})
    _assert_problem(answer, 422)
    assert answer.json()["path"] == "deployment.aggregated.replicas"
    assert answer.json()["line"] == 1 + TINY.read_text().split("replicas: {choices: [1, 2, 3, 4]}")[0].count("\n")

    answer = client.post("/v1/studies", json={"space": "tiny", "trials": MAX_TRIALS + 1, "trails": 3})
    _assert_problem(answer, 422)
    assert {error["path"] for error in answer.json()["errors"]} == {"trials", "trails"}
    _assert_problem(client.get("/v1/studies/nothing"), 404, "nothing")
    _assert_problem(client.get("/v2"), 404)
    _assert_problem(client.get("/docs"), 404)


def test_a_large_body_is_refused_however_it_is_sent(client: Any) -> None:
    body = b'{"space": "' + b"x" * MAX_BODY_BYTES + b'"}'
    headers = {"content-type": "application/json"}
    _assert_problem(client.post("/v1/studies", content=body, headers=headers), 413)
    _assert_problem(client.post("/v1/studies", content=iter([body]), headers=headers), 413)


def test_a_form_of_another_origin_cannot_submit(client: Any) -> None:
    body = json.dumps({"space": "tiny"})
    assert client.post("/v1/studies", content=body, headers={"content-type": "text/plain"}).status_code == 422
    assert client.get("/v1/studies", headers={"host": "evil.example"}).status_code == 400


def test_an_api_key_is_asked_for_everywhere_but_health(tmp_path: Path, make_client: Any) -> None:
    client = make_client(tmp_path, api_key="s3cret")
    assert client.get("/healthz").status_code == 200
    assert client.get("/openapi.json").status_code == 200
    for path in ("/", "/v1/studies", "/v1/studies/nothing", "/studies/nothing"):
        _assert_problem(client.get(path), 401, "API key")
    assert client.get("/v1/studies", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/v1/studies", headers={"Authorization": "Bearer s3cret"}).json() == []

    assert client.post("/login", content="key=wrong").status_code == 401
    assert client.post("/login", content="key=s3cret", follow_redirects=False).status_code == 303
    assert client.get("/v1/studies").json() == []


def test_openapi_describes_every_route_and_so_does_the_documentation(client: Any) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    text = (Path(__file__).parents[2] / "docs" / "service.md").read_text()
    for path in paths:
        assert path.removeprefix("/v1/studies/{study_id}").replace("{number}", "{n}") in text, path
    study = "/v1/studies/{study_id}"
    rest = ("", "/cancel", "/resume", "/events", "/trials", "/trials/{number}", "/frontier", "/report")
    assert {"/v1/studies", "/v1/predict", *(study + tail for tail in rest)} <= set(paths)
