"""python -m zoo: what it prints, and one line with exit status 2 for a mistake."""

import pytest

from zoo.__main__ import main
from zoo.errors import exit_status


def test_list_prints_names_with_parameters(capsys):
    assert main(["list", "resnet18"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["resnet18", "11,689,512", "3.628", "224x224x3"]


def test_show_prints_parameters_layers_and_paper(capsys):
    assert main(["show", "resnet8"]) == 0
    out = capsys.readouterr().out
    for part in ("75,290 parameters", "0.024 GFLOPs", "He et al. 2016", "layer3_0/conv2", "stage3 [8, 8, 64]"):
        assert part in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["show", "resnet_18"], "error: unknown model 'resnet_18'; did you mean resnet18"),
        (["list", "alax*"], "error: no model matches 'alax*'"),
        (["list", "--family", "cn"], "error: unknown family 'cn'; did you mean cnn"),
        (["predict", "no/such/run", "a.png"], "error: 'no/such/run' does not exist"),
        (["convert", "absent.pth", "x.safetensors"], "error: "),
    ],
)
def test_mistakes_get_one_line_and_status_2(args, message, capsys):
    assert main(args) == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_name_that_is_not_utf8_is_printed_as_an_escape(capsys):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")  # as Python reads an argument or a file's name
    assert exit_status(lambda: print(name)) == 0
    assert capsys.readouterr().out == "caf\\udce9\n"
