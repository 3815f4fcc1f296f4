"""What the command refuses before it starts anything."""

from __future__ import annotations

import importlib.util

import pytest

pytest.importorskip("aiohttp", reason="aiohttp is not installed")

from medley_engine.cli import main


def has_gpu():
    if importlib.util.find_spec("torch") is None:
        return False
    import torch  # noqa: PLC0415

    return torch.cuda.is_available()


@pytest.mark.skipif(has_gpu(), reason="there is a GPU here")
def test_gpus_that_are_not_there_are_told_at_once(folder, capsys):
    assert main(["serve", str(folder), "--device", "cuda"]) == 2
    assert "--device cuda" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--home-share", "0"], "home share 0.0"), (["--tensor-parallel", "3"], "tensor parallel 3 does not divide")],
)
def test_settings_that_cannot_be_are_named(folder, capsys, arguments, told):
    assert main(["serve", str(folder), *arguments]) == 2
    assert told in capsys.readouterr().err


def test_an_unknown_device_is_no_choice(folder, capsys):
    with pytest.raises(SystemExit):
        main(["serve", str(folder), "--device", "tpu"])
    assert "'cpu', 'cuda'" in capsys.readouterr().err or "cpu, cuda" in capsys.readouterr().err
