#!/usr/bin/env bash
# Build the wheel, install it in a fresh environment, and compute one cell and one table of the bundled models from an empty folder.
#
#     scripts/check_wheel.sh [PYTHON]      (default: .venv/bin/python, with the package `build` and all dependencies)
#
# The environment has the wheel and nothing else of ours. Dependencies are those of PYTHON, put on the path of the new environment: a
# path in a .pth file does not run the .pth files in it, so that an editable installation there stays out of sight.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-$repository/.venv/bin/python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
unset PYTHONPATH

"$python" -m build --quiet --outdir "$folder/dist" "$repository"  # by way of the source archive, which has to be complete too
"$python" -m venv --without-pip "$folder/venv"
"$python" -m pip --python "$folder/venv/bin/python" install --quiet --no-deps "$folder"/dist/*.whl
bin=$folder/venv/bin
libraries=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
own=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$libraries" > "$own/dependencies.pth"

mkdir "$folder/empty"
cd "$folder/empty"
"$bin/python" -c 'import iec, sys; assert iec.__file__.startswith(sys.prefix), iec.__file__'
small=(sampler.steps=10 batch_size=8 device=cpu)
"$bin/iec" --help
"$bin/iec" run num_images=8 metrics=none "${small[@]}"
"$bin/iec" table table5 --model ddim_fashion_small --run num_images=16 metrics.bootstrap=0 "${small[@]}"
"$bin/iec" report table5 --model ddim_fashion_small num_images=16 metrics.bootstrap=0 "${small[@]}"
test -s outputs/report.html
for module in iec.analysis iec.metrics iec.metrics.references iec.sweeps; do "$bin/python" -m "$module" --help > help.txt; done
echo "The wheel works: $(basename "$folder"/dist/*.whl)"
