# Sourced behind env.sh: a Python with PyTorch, for measurements against it (scripts/bench) and for
# tests on files that it writes (tests/functional/import_test.py). Nothing else needs one.

dd2_torch_venv=$dd2_cache/bench-venv

torch_venv_is_there() {
  "$dd2_torch_venv/bin/python" -c 'import numpy, torch; assert torch.__version__.startswith("2.11.0")' \
    2>/dev/null
}

make_torch_venv() {
  local wheels=(torch==2.11.0 numpy) python
  torch_venv_is_there && return  # somebody else has made it meanwhile
  echo "fetching ${wheels[*]} into $dd2_torch_venv (about 5 GB)" >&2
  # Debian keeps what `venv` needs to install pip in a package of its own: use the system's pip.
  python=$(python_with_pip)
  if [ -z "$python" ]; then
    echo "no python3 with pip here. Install one, then call this again:" >&2
    echo "  apt-get install python3-pip" >&2
    exit 1
  fi
  rm -rf "$dd2_torch_venv"
  "$python" -m venv --without-pip "$dd2_torch_venv"
  "$python" -m pip --python "$dd2_torch_venv/bin/python" install --quiet --disable-pip-version-check \
    "${wheels[@]}" || {
    echo "pip failed (its message is above); call this again when that is mended" >&2
    exit 1
  }
}

# What an interrupted call left does not import, and is made again.
prepare_torch_venv() {
  torch_venv_is_there && return
  mkdir -p "$dd2_cache"
  (
    flock 8
    make_torch_venv
  ) 8>"$dd2_cache/venv.lock"
}
