"""The set-up of a compute instance, in a home of its own: its folders are moved here, conda and sudo are stand-ins."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ftlib.azureml import files

CONDA = """#!/bin/bash
[ "$1$2" = envcreate ] || exit 0
echo "$*" >> "$CALLS"
[ -z "$BREAKS" ] || exit 1
mkdir -p "$CONDA_PKGS_DIRS" "$TMPDIR" "$5/bin"
touch "$CONDA_PKGS_DIRS/torch.tar" "$TMPDIR/torch.part"
printf '#!/bin/bash\\necho "$*" >> "$CALLS"\\n[ $2 = pip ] || exec %s "$@"\\n' "$REAL" > "$5/bin/python"
chmod +x "$5/bin/python"
"""


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    """A home whose file share shows two users' clones, beside a temporary disk and conda."""
    for name in ("home/azureuser", "mnt", "anaconda/etc/profile.d", "bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "bin/sudo").write_text('#!/bin/bash\nexec "$@"\n')
    (tmp_path / "bin/conda").write_text(CONDA)
    for tool in ("sudo", "conda"):
        (tmp_path / "bin" / tool).chmod(0o755)
    (tmp_path / "anaconda/etc/profile.d/conda.sh").write_text('echo "$NOT_SET" > /dev/null\n')
    script = (files.FOLDER / "instance-setup.sh").read_text()
    for place in ("/mnt/ftlib", "/anaconda"):
        script = script.replace(place, f"{tmp_path}{place}")
    for user in ("ada", "bob"):
        clone = tmp_path / f"home/azureuser/cloudfiles/code/Users/{user}/ftlib"
        (clone / "ftlib/azureml").mkdir(parents=True)
        (clone / "environment.yml").write_text("dependencies: []\n")
        (clone / "ftlib/azureml/instance-setup.sh").write_text(script)
    return tmp_path


def set_up(instance: Path, user: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a person does, in the terminal that opens in the home folder."""
    home = instance / "home/azureuser"
    environment = {"PATH": f"{instance}/bin:{os.environ['PATH']}", "HOME": str(home), "REAL": sys.executable}
    script = f"cloudfiles/code/Users/{user}/ftlib/ftlib/azureml/instance-setup.sh"
    command = ["bash", script]
    environment |= {"CALLS": str(instance / "calls"), **variables}
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)


def calls(instance: Path, tool: str) -> list[str]:
    lines = (instance / "calls").read_text().splitlines()
    return [line.replace(f"{instance}", "") for line in lines if line.startswith(tool)]


def test_kernel_of_ones_own_clone_is_made_and_the_os_disk_stays_empty(instance: Path) -> None:
    before = {path for path in instance.rglob("*") if path.is_file()}
    done = set_up(instance, "bob")
    assert (done.returncode, done.stderr) == (0, "")
    clone = "/home/azureuser/cloudfiles/code/Users/bob/ftlib"
    assert done.stdout.replace(str(instance), "") == (
        f"The kernel 'Python (ftlib)' is ready for {clone}. "
        "To log in to the Hub: /mnt/ftlib/environment/bin/hf auth login\n"
    )
    create = f"env create --quiet --prefix /mnt/ftlib/environment --file {clone}/environment.yml"
    assert calls(instance, "env create") == [create]
    assert calls(instance, "-m pip")[0].endswith(f"--editable {clone}")
    kernel = instance / "home/azureuser/.local/share/jupyter/kernels/ftlib"
    made = {path for path in instance.rglob("*") if path.is_file()} - before - {instance / "calls"}
    assert {path for path in made if not path.is_relative_to(instance / "mnt") and path.parent != kernel} == set()
    specification = json.loads((kernel / "kernel.json").read_text())
    assert specification["display_name"] == "Python (ftlib)"


def test_log_in_of_the_terminal_is_found_by_the_kernel(instance: Path) -> None:
    """`hf auth login` writes below the home; a variable such as HF_HOME in the kernel would lead elsewhere."""
    set_up(instance, "ada")
    home = instance / "home/azureuser"
    specification = json.loads((home / ".local/share/jupyter/kernels/ftlib/kernel.json").read_text())
    token = home / ".cache/huggingface/token"
    token.parent.mkdir(parents=True)
    token.write_text("hf_ofTheTerminal")
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **specification.get("env", {})}
    code = "import huggingface_hub; print(huggingface_hub.get_token())"
    command = [specification["argv"][0], "-c", code]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == "hf_ofTheTerminal\n"


def test_environment_is_made_once_and_anew_if_it_is_unfinished_or_outdated(instance: Path) -> None:
    assert set_up(instance, "ada", BREAKS="yes").returncode == 1
    for _ in range(2):
        assert set_up(instance, "ada").returncode == 0
    assert len(calls(instance, "env create")) == 2
    (instance / "home/azureuser/cloudfiles/code/Users/ada/ftlib/environment.yml").write_text("dependencies: [pip]\n")
    assert set_up(instance, "ada").returncode == 0
    assert len(calls(instance, "env create")) == 3
