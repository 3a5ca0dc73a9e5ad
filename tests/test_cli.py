"""The command's words: what goes in, what comes out, and with which exit code."""

import re
import subprocess
import sys

import pytest

from nni_gumbel import __version__
from nni_gumbel.cli import main
from nni_gumbel.data import DOWNLOADED, PACKAGED
from nni_gumbel.pipeline.command import words_parser
from nni_gumbel.pipeline.settings import ExperimentSettings
from nni_gumbel.search.settings import COUPLINGS


def test_help_names_every_subcommand_with_a_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name in ("register", "init", "doctor", "wait", "export", "train", "trial"):
        assert re.search(rf"^    {name}\s+\w+ \w+", text, re.MULTILINE), name


@pytest.mark.parametrize("name", ["register", "init", "doctor", "wait", "export", "train", "trial"])
def test_every_subcommand_has_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: nni-gumbel {name}")


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"nni-gumbel {__version__}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "COMMAND"),
        (["serach"], "'serach'"),
        (["wait", "--timeout", "soon"], "'soon'"),
        (["wait", "--timeout", "0"], "--timeout: 0"),
        (["init"], "DIR"),
        (["export", "--max-params", "few"], "'few'"),
        (["export", "--network", "network-1", "--max-flops", "9"], "leave out --max-flops"),
        (["export", "nowhere/at/all"], "nowhere/at/all"),
        (["train", "somewhere", "-o", "there"], "--data: it is missing"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(words, line, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("nni-gumbel: ") and err.count("\n") == 1 and line in err


def test_init_writes_the_starter_and_says_what_comes_next(tmp_path, capsys):
    assert main(["init", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine" / "search_spaces" / "mnist.py").is_file()
    assert f"cd {tmp_path / 'mine'}" in capsys.readouterr().out
    assert main(["init", str(tmp_path / "mine")]) == 2
    assert "not overwritten" in capsys.readouterr().err


def test_registering_says_what_can_be_written_now(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NNI_CONFIG_DIR", str(tmp_path))
    assert main(["register"]) == 0
    assert "tuner: {name: GumbelSearch}" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_of_settings_fits_the_terminal_and_tells_the_couplings(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich then takes the output for a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["settings"]) == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, text.splitlines())) <= columns
    assert text.index("basic setting") < text.index("max_params") < text.index("expert setting")
    assert text.index("expert setting") < text.index("log_prob_every_n_step") < text.index("rule of")
    for name in (*ExperimentSettings().flat(), *COUPLINGS):
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name
    assert "…" not in text.replace("max_…", "")


@pytest.mark.slow
def test_the_doctor_fails_with_a_line_for_each_check(tmp_path, capsys):
    assert main(["doctor", str(tmp_path / "nowhere.yml")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert all(re.match(r"(ok|warn|FAIL) +\S", line) for line in lines[:-1])
    assert any(line.startswith("FAIL") and "nowhere.yml" in line for line in lines)
    assert lines[-1].endswith("to mend.")


@pytest.mark.slow
def test_waiting_where_no_experiment_was_started_is_one_line(tmp_path):
    code = "import sys; from nni_gumbel.cli import main; sys.exit(main(['wait']))"
    ran = subprocess.run(
        [sys.executable, "-c", code], env={"HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert ran.returncode == 2
    assert ran.stderr == (
        "nni-gumbel: no experiment was started on this machine; run `nni-gumbel create --config experiment.yml`\n"
    )


@pytest.mark.slow
def test_a_trial_imports_nothing_before_its_own_module():
    # A trial asks NNI for its parameters first of all; torch would keep it from that for seconds.
    code = (
        "import sys\n"
        "import nni_gumbel.cli\n"
        "print(*sorted({'argparse', 'torch', 'nni', 'rich', 'requests'} & set(sys.modules)))\n"
        "import nni_gumbel.pipeline.launch\n"
        "print(*sorted({'torch', 'pytorch_lightning', 'rich'} & set(sys.modules)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "\n\n"


def test_the_help_of_a_trial_explains_every_word_that_it_takes(capsys):
    with pytest.raises(SystemExit):
        main(["trial", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for action in words_parser()._actions:
        (word,) = action.option_strings
        form = {"--space": "module:Class [key=value ...]", "--logger": "NAME [NAME ...]"}.get(
            word, action.metavar
        )
        assert f" {word} {form} {(action.help % vars(action))[:20]}" in text, word
    assert all(name in text for name in (PACKAGED, *DOWNLOADED, "npz:FILE", "LightningDataModule"))


def test_a_wrong_word_of_a_trial_is_answered_with_the_form_of_the_command(capsys):
    assert main(["trial", "--spcae", "a:B"]) != 0
    assert "--space module:Class [key=value ...] [--data NAME] [--data-dir DIR]" in capsys.readouterr().err


def test_a_trial_gets_all_words_after_its_name(capsys):
    assert main(["trial", "--space", "no_colon"]) != 0
    assert "no_colon" in capsys.readouterr().err
