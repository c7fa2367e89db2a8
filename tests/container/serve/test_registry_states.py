"""A platform that loads, calls and unloads models at random on a machine that holds three; every answer is known."""

import json
import resource

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from container.serve.app import create_app
from container.serve.health import Health, State
from container.serve.load import load_isolated, serve_model
from container.serve.metrics import Metrics
from container.serve.plan import Machine, plan_server
from container.serve.registry import Registry
from container.serve.service import Service

PLACES = 3
NAMES = st.sampled_from(["a", "b/c", "d.tar.gz", "é ü", ".."])


class Platform(RuleBasedStateMachine):
    """`loaded` is what must be there, oldest first."""

    base = None

    @initialize()
    def start(self):
        plan = plan_server(Machine(1, 8 * 1024**3, 0, True), {"SAGEMAKER_MULTI_MODEL": "true"}, 0)

        def load(directory):
            if len(registry.predictors()) >= PLACES:
                raise MemoryError
            return load_isolated(directory, "cpu", {}, plan)

        registry = Registry(self.base, load, plan.model_memory_bytes)
        health = Health(1)
        self.service = Service(plan, health, registry, Metrics(1))
        serve_model(self.service, self.base, "cpu", {})
        health.mark(health.claim(), State.READY)
        self.client = create_app(self.service).test_client()
        self.loaded = []

    def teardown(self):
        self.service.stop()

    def ask(self, method, path, value=None):
        answer = self.client.open(path, method=method, data=json.dumps(value), content_type="application/json")
        return answer.status_code, answer.get_json(silent=True)

    @rule(name=NAMES)
    def load(self, name):
        status, _ = self.ask("POST", "/models", {"model_name": name, "url": str(self.base / "model")})
        if name in self.loaded:
            assert status == 409
        elif len(self.loaded) == PLACES:
            assert status == 507
        else:
            assert status == 200
            self.loaded.append(name)

    @rule(name=NAMES)
    def load_as_the_platform_does(self, name):
        """Room is made for it where there is none."""
        self.load(name)
        if name not in self.loaded:
            self.unload(self.loaded[0])
            self.load(name)
        assert name in self.loaded

    @rule(name=NAMES)
    def load_what_is_broken(self, name):
        status, _ = self.ask("POST", "/models", {"model_name": name, "url": str(self.base / "broken")})
        assert status == (409 if name in self.loaded else 507 if len(self.loaded) == PLACES else 500)

    @rule(name=NAMES)
    def unload(self, name):
        status, _ = self.ask("DELETE", f"/models/{name}")
        assert status == (200 if name in self.loaded else 404)
        self.loaded = [other for other in self.loaded if other != name]

    @rule(name=NAMES, value=st.integers(0, 9))
    def invoke(self, name, value):
        status, answer = self.ask("POST", f"/models/{name}/invoke", value)
        assert status == (200 if name in self.loaded else 404)
        assert status == 404 or answer == value * 2

    @rule(name=NAMES)
    def describe(self, name):
        assert self.ask("GET", f"/models/{name}")[0] == (200 if name in self.loaded else 404)

    @invariant()
    def the_list_is_what_is_loaded(self):
        status, answer = self.ask("GET", "/models")
        assert status == 200
        assert sorted(model["modelName"] for model in answer["models"]) == sorted(self.loaded)

    @invariant()
    def it_stays_healthy(self):
        assert self.ask("GET", "/ping")[0] == 200


@pytest.fixture
def models(tmp_path):
    for name, code in (("model", "def predict_fn(data, model): return data * 2"), ("broken", "1 / 0")):
        (tmp_path / name / "code").mkdir(parents=True)
        (tmp_path / name / "code" / "inference.py").write_text(code)
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_DATA, limits)  # each load sets it to what is free then


@pytest.mark.slow
def test_c116_to_c120_whatever_the_platform_does_every_answer_is_the_contracts(models):
    machine = type("Here", (Platform,), {"base": models})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    few = settings(max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=checks, database=None)
    run_state_machine_as_test(machine, settings=few)
