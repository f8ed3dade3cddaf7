#!/bin/bash
# Makes .venv and installs dist-train into it with what training and the tests need. `make setup` calls this.
set -euo pipefail
cd "$(dirname "$0")"
exec 1>&2 # all of this is for a person to read

readonly log=.venv/install.log ready=.venv/.ready
readonly wanted='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14 python; do
        if "$candidate" -c "$wanted" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "dist-train needs Python 3.11 or newer with its venv module, and found none on PATH." >&2
    echo "Install one (Debian: apt install python3 python3-venv), or name one: make setup PYTHON=/path/to/python3" >&2
    exit 2
}

make_venv() {
    if .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        return # a new list of packages, not a new Python
    fi
    if [[ $installer == uv ]]; then
        rm -rf .venv
        uv venv --quiet --python "${PYTHON:->=3.11}" .venv
    else
        "$(find_python)" -m venv --clear .venv
    fi
}

install_packages() {
    if [[ $installer == uv ]]; then
        uv pip install --python .venv/bin/python --editable '.[demo,test]'
        return
    fi
    .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip
    .venv/bin/python -m pip install --progress-bar off --disable-pip-version-check --editable '.[demo,test]'
}

# A line now and then, so that minutes of download are not silence.
tell_progress() {
    local line
    while kill -0 $$ 2>/dev/null; do # for as long as the script itself lives
        read -rt 15 <> <(:) && continue # a sleep without a process that could be left behind
        line=$(grep -E '^ *(Download(ing|ed)|Building|Prepar(ing|ed)|Installing|Using cached) ' "$log" | tail -n 1 || true)
        line=${line#"${line%%[! ]*}"}
        printf '  %3d s  %5d MB in .venv  %s\n' "$SECONDS" "$(du -sm .venv | cut -f 1)" "${line:0:70}"
    done
}

installer=pip
command -v uv >/dev/null && installer=uv
rm -f "$ready" # an install that is interrupted must not look finished
[[ $installer == uv ]] || find_python >/dev/null
make_venv
version=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if compgen -G ".venv/lib*/python*/site-packages/torch" >/dev/null; then
    echo "bringing .venv (python $version) up to date …"
else
    echo "setting up .venv (python $version) … torch is about 5 GB, a minute or two on a fast line"
fi

: >"$log"
tell_progress &
ticker=$!
trap 'kill "$ticker" 2>/dev/null || true' EXIT
if ! install_packages >"$log" 2>&1; then
    tail -n 10 "$log"
    echo "✗ the installation failed; all of its output is in $log. Run the same command again to go on."
    exit 1
fi
echo "$PWD" >"$ready"
((SECONDS < 60)) && took="$SECONDS s" || took="$((SECONDS / 60)) m $((SECONDS % 60)) s"
echo "✓ ready in $took"
