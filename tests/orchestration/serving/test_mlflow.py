"""A registered model as users of MLflow know it: pyfunc, the scoring server, aliases, evaluation, many clients."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model, get_model_info, make_metric
from mlflow.pyfunc import scoring_server

from orchestration.unlearning import unlearn
from registry import ids
from registry.errors import DamagedError, NotFoundError, RefusedError, UsageError
from tests.orchestration.conftest import Deployed
from tests.orchestration.corpus import NUM_ARTICLES, heldout_of, key, text, title
from training.serving import flavor
from training.tracking import store

SHORT = {"max_new_tokens": 4}
NUM_CLIENTS = 32
START_S = 300  # a server imports torch and MLflow first, beside other tests


@pytest.fixture
def trained(weights: Path) -> list[int]:
    """The numbers of articles that were trained and share no text with others."""
    heldout = heldout_of(weights)
    return [n for n in range(3, NUM_ARTICLES + 1) if ids.source_id(key(n)) not in heldout]


@pytest.fixture
def environment(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stores of the test in the environment, as a user sets them."""
    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", deployed.settings.tracking_uri)
    monkeypatch.setenv("NULLS_CATALOG", deployed.settings.catalog or "")
    mlflow.set_tracking_uri(deployed.settings.tracking_uri)
    yield
    mlflow.set_tracking_uri(before)


@pytest.fixture
def unlearned(deployed: Deployed, trained: list[int]) -> int:
    """The number of an article that version 2 revokes."""
    unlearn.unlearn(deployed.settings, deployed.uri, [key(trained[0])], reason="asked", measure=False)
    return trained[0]


def prompt_of(number: int) -> str:
    """Return the beginning of an article."""
    return text(number)[:60]


def test_predict_answers_with_the_text_the_source_and_the_version(
    deployed: Deployed, environment: None, trained: list[int]
) -> None:
    loaded = mlflow.pyfunc.load_model(deployed.uri)
    served = deployed.load(deployed.uri)
    number = trained[0]
    expected, used = served.generate(prompt_of(number), max_new_tokens=4)
    assert used == ids.source_id(key(number))
    answer = {"text": expected, "source": key(number), "model_uri": deployed.uri}
    frame = pd.DataFrame({"prompt": [prompt_of(number)]})
    for data in (prompt_of(number), frame, {"prompt": [prompt_of(number)]}, pd.Series([prompt_of(number)])):
        assert loaded.predict(data, params=SHORT) == [answer]
    assert len(loaded.predict([prompt_of(number), "other"], params=SHORT)) == 2

    other = trained[1]
    text_of_other, _ = served.generate(prompt_of(number), source_id=ids.source_id(key(other)), max_new_tokens=4)
    for source in (key(other), ids.format_id(ids.source_id(key(other)))):
        (row,) = loaded.predict([{"prompt": prompt_of(number), "source": source}], params=SHORT)
        assert row == {"text": text_of_other, "source": key(other), "model_uri": deployed.uri}
        assert loaded.predict([{"prompt": prompt_of(number)}], params=SHORT | {"source": source}) == [row]
        assert loaded.predict([prompt_of(number)], params=SHORT | {"sources": [source]})[0]["source"] in (
            None,
            key(other),
        )
    (backbone,) = loaded.predict([{"prompt": prompt_of(number), "source": None}], params=SHORT)
    assert backbone["source"] is None


def test_parameters_reach_the_model(deployed: Deployed, environment: None, trained: list[int]) -> None:
    loaded = mlflow.pyfunc.load_model(deployed.uri)
    served = deployed.load(deployed.uri)
    for options in (
        {"max_new_tokens": 1},
        {"max_new_tokens": 12, "temperature": 2.0, "seed": 1},
        {"max_new_tokens": 12, "temperature": 2.0, "seed": 2},
        {"max_new_tokens": 12, "temperature": 2.0, "seed": 1, "top_p": 0.2},
    ):
        expected, _ = served.generate("some", source_id=None, **options)
        (row,) = loaded.predict([{"prompt": "some", "source": "none"}], params=options)
        assert row["text"] == expected
    sampled = {
        served.generate("some", source_id=None, max_new_tokens=12, temperature=2.0, **more)[0]
        for more in ({"seed": 1}, {"seed": 2}, {"seed": 1, "top_p": 0.2})
    }
    assert len(sampled) == 3, "each option matters, or the comparison above shows nothing"


def test_errors_of_predict_are_ours_and_mlflows(deployed: Deployed, environment: None, unlearned: int) -> None:
    for uri in ("models:/m/1", "models:/m/2"):
        loaded = mlflow.pyfunc.load_model(uri)
        for asked in ({"source": key(unlearned)}, {"source": ids.format_id(ids.source_id(key(unlearned)))}):
            for call in (
                lambda loaded=loaded, asked=asked: loaded.predict([{"prompt": "x", **asked}]),
                lambda loaded=loaded, asked=asked: loaded.predict(["x"], params=asked),
                lambda loaded=loaded, asked=asked: loaded.predict(["x"], params={"sources": [asked["source"]]}),
            ):
                with pytest.raises(RefusedError, match=f"unlearned.*{key(unlearned)}, {title(unlearned)}") as refused:
                    call()
                assert isinstance(refused.value, MlflowException)
                assert refused.value.get_http_status_code() == 403
        (row,) = loaded.predict([prompt_of(unlearned)], params=SHORT)
        assert row["source"] != key(unlearned)
        with pytest.raises(NotFoundError, match="was not trained"):
            loaded.predict([{"prompt": "x", "source": "wiki:testwiki:999"}])
        for wrong in ({"messages": []}, [["x"]], {"prompt": "x", "max_tokens": 3}):
            with pytest.raises(UsageError, match="expected"):
                loaded.predict(wrong)
        with pytest.raises(UsageError, match="unknown parameter max_tokens"):
            loaded.predict(["x"], params={"max_tokens": 3})
        with pytest.raises(UsageError, match="exceed the context"):
            loaded.predict(["x"], params={"max_new_tokens": 10_000})


def test_other_models_of_mlflow_are_left_alone(deployed: Deployed, environment: None, tmp_path: Path) -> None:
    mlflow.pyfunc.load_model(deployed.uri)  # from here on, requests to our models are read first

    class Echo(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints
            return model_input

    mlflow.pyfunc.save_model(str(tmp_path / "echo"), python_model=Echo(), pip_requirements=[])
    echo = mlflow.pyfunc.load_model(str(tmp_path / "echo"))
    assert echo.predict({"messages": [1]}) == {"messages": [1]}
    response = TestClient(scoring_server.init(echo)).post("/invocations", json={"instances": [1, 2]})
    assert (response.status_code, response.json()) == (200, {"predictions": [1, 2]})


@pytest.fixture
def client(deployed: Deployed, environment: None, unlearned: int) -> TestClient:
    """MLflow's scoring server for version 2, in this process."""
    return TestClient(scoring_server.init(mlflow.pyfunc.load_model("models:/m/2")))


def test_the_scoring_server_answers_right_requests(client: TestClient, deployed: Deployed, trained: list[int]) -> None:
    prompt = prompt_of(trained[1])
    expected, _ = deployed.load("models:/m/2").generate(prompt, max_new_tokens=4)
    answer = {"predictions": [{"text": expected, "source": key(trained[1]), "model_uri": "models:/m/2"}]}
    for body in (
        {"dataframe_records": [{"prompt": prompt}]},
        {"dataframe_split": {"columns": ["prompt"], "data": [[prompt]]}},
        {"inputs": [{"prompt": prompt}]},
        {"inputs": {"prompt": [prompt]}},
        {"inputs": [prompt]},
    ):
        response = client.post("/invocations", json=body | {"params": SHORT})
        assert (response.status_code, response.json()) == (200, answer)
    response = client.post("/invocations", content=f"prompt\n{prompt}\n", headers={"Content-Type": "text/csv"})
    assert response.json()["predictions"][0]["text"].startswith(expected)


@pytest.mark.parametrize(
    "body",
    [
        '"Ayn Rand was"',
        '["Ayn Rand was"]',
        "not json",
        "",
        '{"prompt": "Ayn Rand was"}',
        '{"messages": [{"role": "user", "content": "Ayn Rand was"}]}',
        '{"instances": [{"prompt": "Ayn Rand was"}]}',
        '{"inputs": "Ayn Rand was"}',
        '{"inputs": [["Ayn Rand was"]]}',
        '{"inputs": [{"text": "Ayn Rand was"}]}',
        '{"inputs": [{"prompt": ""}]}',
        '{"inputs": [{"prompt": NaN}]}',
        '{"inputs": [{"prompt": 5}]}',
        '{"inputs": [{"prompt": "x", "temperature": 1}]}',
        '{"inputs": ["x"], "temperature": 1}',
        '{"inputs": ["x"], "params": {"max_tokens": 3}}',
        '{"inputs": ["x"], "params": {"temperature": NaN}}',
        '{"inputs": ["x"], "params": {"max_new_tokens": "3"}}',
        '{"inputs": ["x"], "params": {"max_new_tokens": 100000}}',
        '{"inputs": [{"prompt": "x", "source": "Article 1"}]}',
        '{"dataframe_split": {"columns": ["prompt"], "data": ["x"]}}',
        '{"dataframe_records": {"prompt": ["x"]}}',
    ],
)
def test_the_scoring_server_refuses_wrong_requests_and_says_what_is_right(client: TestClient, body: str) -> None:
    response = client.post("/invocations", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert "expected" in response.text or "exceed" in response.text
    assert "predictions" not in response.text


def test_the_scoring_server_refuses_a_revoked_source_by_key_and_title(client: TestClient, unlearned: int) -> None:
    body = {"inputs": [{"prompt": "x"}, {"prompt": "x", "source": key(unlearned)}]}
    response = client.post("/invocations", json=body)
    assert response.status_code == 403
    assert key(unlearned) in response.json()["message"]
    assert title(unlearned) in response.json()["message"]
    assert (
        client.post("/invocations", json={"inputs": [{"prompt": "x", "source": "web:no.example"}]}).status_code == 404
    )


def test_the_signature_example_and_environment_of_a_version(deployed: Deployed, environment: None) -> None:
    info = get_model_info(deployed.uri)
    assert info.signature.inputs.input_names() == ["prompt", "source"]
    assert info.signature.inputs.required_input_names() == ["prompt"]
    assert {spec.name for spec in info.signature.params} == {
        *("max_new_tokens", "temperature", "top_p", "seed", "source", "sources")
    }
    assert info.signature.outputs.input_names() == ["text", "source", "model_uri"]
    folder = Path(mlflow.artifacts.download_artifacts(deployed.uri))
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("nulls[train]") for line in lines)
    assert f"mlflow=={mlflow.__version__}" in lines
    model = Model.load(str(folder))
    assert mlflow.pyfunc.load_model(deployed.uri).predict(model.load_input_example(str(folder)), params=SHORT)
    assert "dataframe_split" in json.loads((folder / "serving_input_example.json").read_text())


@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # of MLflow's own code
def test_mlflow_evaluates_the_model(deployed: Deployed, environment: None, trained: list[int]) -> None:
    data = pd.DataFrame({"prompt": [prompt_of(n) for n in trained[:2]], "truth": ["a", "b"]})
    length = make_metric(
        eval_fn=lambda predictions, targets: float(predictions.str.len().mean()), name="length", greater_is_better=True
    )
    result = mlflow.models.evaluate(deployed.uri, data, targets="truth", predictions="text", extra_metrics=[length])
    served = deployed.load(deployed.uri)
    expected = [len(served.generate(prompt)[0]) for prompt in data["prompt"]]
    assert result.metrics["length"] == sum(expected) / 2 > 0


def test_every_way_to_name_a_version(deployed: Deployed, unlearned: int) -> None:
    tracking_uri = deployed.settings.tracking_uri
    client = store.client(tracking_uri)
    client.set_registered_model_alias("m", "champion", "1")
    one, two = flavor.versions("m", tracking_uri=tracking_uri)
    model_id = Path(client.get_model_version("m", "2").source).parent.name
    for uri, version in {
        "models:/m@champion": one,
        "models:/m/1": one,
        "models:/m/latest": two,
        f"models:/{model_id}": two,
        f"runs:/{one.run_id}": one,
        f"runs:/{one.run_id}/model": one,
    }.items():
        assert flavor.describe(uri, tracking_uri=tracking_uri).uri == version.uri
    for uri in (f"models:/m-{'0' * 32}", f"runs:/{'0' * 32}", "models:/m@nobody", "models:/nobody/latest"):
        with pytest.raises(NotFoundError):
            flavor.describe(uri, tracking_uri=tracking_uri)


def test_pyfunc_refuses_a_pointer_that_was_edited(
    deployed: Deployed, environment: None, unlearned: int, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(mlflow.artifacts.download_artifacts("models:/m/2"), tmp_path / "downloaded"))
    pointer = json.loads((folder / "nulls.json").read_text())
    (folder / "nulls.json").write_text(json.dumps(pointer | {"revoked": []}))
    with pytest.raises(DamagedError, match="altered"):
        mlflow.pyfunc.load_model(str(folder))


def test_many_clients_of_mlflow_models_serve(
    deployed: Deployed, trained: list[int], unlearned: int, tmp_path: Path
) -> None:
    """A real server: each client gets the answer that it would get alone, or the refusal that it should get."""
    served = deployed.load("models:/m/2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/m/2", "-p", str(port)]
    variables = os.environ | {
        "MLFLOW_TRACKING_URI": deployed.settings.tracking_uri,
        "NULLS_CATALOG": deployed.settings.catalog or "",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # MLflow starts uvicorn by name
    }
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--env-manager", "local"], env=variables, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_for(server, port, tmp_path / "server.log")
        with concurrent.futures.ThreadPoolExecutor(NUM_CLIENTS) as clients:
            answers = list(clients.map(lambda seed: _ask(port, seed, trained, unlearned), range(NUM_CLIENTS * 2)))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
    for seed, (status, answer) in enumerate(answers):
        if seed % 4 == 3:
            assert (status, key(unlearned) in answer["message"]) == (403, True)
            continue
        expected, used = served.generate(prompt_of(trained[1 + seed % 3]), max_new_tokens=8, temperature=1.5, seed=seed)
        assert used is not None
        assert (status, answer["predictions"][0]["text"]) == (200, expected)


def _ask(port: int, seed: int, trained: list[int], unlearned: int) -> tuple[int, dict[str, Any]]:
    row = {"prompt": prompt_of(trained[1 + seed % 3])} | ({"source": key(unlearned)} if seed % 4 == 3 else {})
    body = {"inputs": [row], "params": {"max_new_tokens": 8, "temperature": 1.5, "seed": seed}}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=START_S) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def _wait_for(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())
