"""A command starts itself once more for large pages, and only once."""

import os
import sys

import pytest

from train.memory import SETTING, VARIABLE, use_large_pages


@pytest.fixture
def started(monkeypatch):
    """The arguments and environments of processes that would have been started."""
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


def test_what_the_environment_says_is_left_alone(started, monkeypatch):
    monkeypatch.setenv(VARIABLE, "glibc.malloc.tcache_count=0")
    use_large_pages()
    assert not started


def test_other_systems_start_nothing(started, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    use_large_pages()
    assert not started
