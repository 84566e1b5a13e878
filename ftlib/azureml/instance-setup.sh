#!/bin/bash
# On a compute instance: makes the environment and the kernel "Python (ftlib)". Run it in the instance's terminal, from your
# own clone of the project; it may be run again at any time. After the instance was stopped it has to be, since everything
# large lies on the temporary disk, /mnt, which is emptied then: the OS disk is small, and full it keeps the instance running.
set -euo pipefail
scratch=/mnt/ftlib
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
environment=$scratch/environment

sudo mkdir -p $scratch/tmp
sudo chown "$(id -u):$(id -g)" $scratch $scratch/tmp
export TMPDIR=$scratch/tmp CONDA_PKGS_DIRS=$scratch/conda PIP_CACHE_DIR=$scratch/pip

set +u # conda's own functions use variables that are not set
source /anaconda/etc/profile.d/conda.sh
# The copy is made last, so an environment that was not finished, or is of an older clone, is made anew.
if ! cmp -s "$project/environment.yml" $environment/environment.yml; then
    rm -rf $environment
    conda env create --quiet --prefix $environment --file "$project/environment.yml"
    cp "$project/environment.yml" $environment/
fi
$environment/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable "$project"
$environment/bin/python -m ipykernel install --user --name ftlib --display-name "Python (ftlib)" > /dev/null
echo "The kernel 'Python (ftlib)' is ready for $project. To log in to the Hub: $environment/bin/hf auth login"
