"""The conformance suite of the runtimes, run for TensorRT on the doubles of its API and of CUDA's.

The suite itself skips ``tensorrt`` where the package or a GPU is missing; here it runs everywhere.
"""

from __future__ import annotations

import pytest
from tensorrt_double import VERSIONS, install
from test_runtimes import CASES, TestComputing, TestConformance, TestOnFiles

from mint_deploy import plugins

__all__ = ["TestComputing", "TestConformance", "TestOnFiles"]


@pytest.fixture(params=[VERSIONS[0], VERSIONS[2], VERSIONS[-1]], autouse=True)
def world(request, monkeypatch):
    found = install(monkeypatch, request.param)
    yield found
    assert found.cudart.left() == []


@pytest.fixture
def name(world):
    assert plugins.load("runtime", "tensorrt").missing() is None
    return "tensorrt"


@pytest.fixture
def case(name, tmp_path):
    return CASES[name](tmp_path)


@pytest.fixture
def computing(case):
    return case


@pytest.fixture
def on_files(name, tmp_path):
    return plugins.load("runtime", name), tmp_path
