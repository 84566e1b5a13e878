#!/bin/bash
# Runs once, as root, when the compute instance is created, and starts what takes longer than the 15 minutes that Azure
# allows: conda's environment and the kernel, as azureuser. Running it again changes nothing that is already there.
# It expects the project in the file share: cloudfiles/code/Users/<you>/ftlib. Log: /tmp/ftlib-setup.log
set -euo pipefail

cat > /usr/local/bin/ftlib-setup <<'SETUP'
#!/bin/bash
set -euo pipefail
shopt -s nullglob
projects=(/home/azureuser/cloudfiles/code/Users/*/ftlib/environment.yml)
if [ "${#projects[@]}" -ne 1 ]; then
    echo "found ${#projects[@]} copies of the project in cloudfiles/code/Users/*/ftlib, expected one;" \
        "clone it there, then run: ftlib-setup" >&2
    exit 1
fi
project=$(dirname "${projects[0]}")
set +u # conda's own functions use variables that are not set
source /anaconda/etc/profile.d/conda.sh
environments=$(conda env list)
if ! grep -qE '^ftlib\s' <<< "$environments"; then
    conda env create --quiet --name ftlib --file "$project/environment.yml"
fi
conda activate ftlib
python -m pip install --quiet --no-deps --no-build-isolation --editable "$project"
# Kernels do not inherit the shell's variables. The Hub's downloads go to the local disk: they stall on the file share.
python -m ipykernel install --user --name ftlib --display-name "Python (ftlib)" --env HF_HUB_CACHE /tmp/huggingface
echo "the kernel 'Python (ftlib)' is ready"
SETUP
chmod 755 /usr/local/bin/ftlib-setup

sudo -u azureuser -i bash -c 'nohup ftlib-setup > /tmp/ftlib-setup.log 2>&1 &'
