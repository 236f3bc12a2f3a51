"""A command restarts itself once, with large memory pages."""

import os
import sys

import pytest

from train.memory import SETTING, VARIABLE, use_large_pages


@pytest.fixture
def started(monkeypatch):
    """Records the arguments and environments of restarts instead of making them."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda path, args, environment: calls.append((path, args, environment)))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "train", "cnn", "--steps", "3"])
    monkeypatch.delenv(VARIABLE, raising=False)
    return calls


def test_the_same_command_starts_with_large_pages(started):
    use_large_pages()
    ((path, args, environment),) = started
    assert (path, args) == (sys.executable, [sys.executable, "-m", "train", "cnn", "--steps", "3"])
    assert environment == {**os.environ, VARIABLE: SETTING}


def test_a_setting_of_the_environment_is_left_alone(started, monkeypatch):
    monkeypatch.setenv(VARIABLE, "glibc.malloc.tcache_count=0")
    use_large_pages()
    assert not started


def test_other_systems_start_nothing(started, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    use_large_pages()
    assert not started
