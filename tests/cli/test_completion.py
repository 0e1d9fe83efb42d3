"""Scripts that complete commands, options and values in a shell."""

import shutil
import subprocess
from pathlib import Path

import pytest

from fastgen.cli import COMMANDS, main

TYPED = """
source {script}
COMP_WORDS=({words}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
$(complete -p fastgen | sed 's/.*-F \\([^ ]*\\).*/\\1/') fastgen "${{COMP_WORDS[COMP_CWORD]}}" fastgen
echo "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "fastgen.bash"
    with pytest.MonkeyPatch.context() as patch, open(file, "w") as out:
        patch.setattr("sys.stdout", out)
        assert main(["completion", "bash"]) == 0
    return file


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("fastgen do", "doctor"),
        ("fastgen init --pre", "--prefer"),
        ("fastgen init --prefer ''", "quality speed"),
        ("fastgen list ''", "objectives sources configs"),
        ("fastgen eval --stud", "--student"),
    ],
)
def test_bash_completes_commands_options_and_values(script, words, completed):
    code = TYPED.format(script=script, words=words)
    found = subprocess.run(["bash", "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert set(completed.split()) <= set(found)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_told_every_command(shell, capsys):
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in COMMANDS)
    assert "--prefer" in said or "prefer" in said
