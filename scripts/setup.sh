# Setup of .venv, sourced by run_train.sh and run_tests.sh: `setup run` or `setup dev` installs all packages.
# It needs bash 3.2 (macOS has no newer one), Python >= 3.11 and a package index. It is fast if nothing has changed.
# It is safe against interruption (the stamp is written last) and against two setups at once (a lock).

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"

say() { # say ENGLISH CHINESE: print one of them, by the same rule as language_of() in lorafit/messages.py
  case "${LORAFIT_LANG:-${LC_ALL:-${LC_MESSAGES:-${LANG:-}}}}" in
    zh* | ZH*) printf '%s\n' "$2" >&2 ;;
    *) printf '%s\n' "$1" >&2 ;;
  esac
}

setup() { # setup run|dev
  local kind="$1" want
  want="$kind $(cd "$root" && cksum pyproject.toml requirements.txt constraints.txt) $root"
  if stands "$want"; then return; fi
  if [ "$kind" = run ] && stands "dev${want#run}"; then return; fi
  refuse_intel_mac
  take_turns
  if ! stands "$want"; then build "$kind" "$want"; fi
  exec 9<&-
}

stands() { # succeeds if .venv is complete and was built from these files
  local stamp="$venv/.lorafit-${1%% *}"
  [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$1" ]
}

take_turns() { # file descriptor 9 holds the lock until it is closed
  exec 9<"$root/scripts/setup.sh"
  if command -v flock >/dev/null 2>&1 && ! flock -n 9; then
    say "Another installation is running here; waiting for it." "另一个安装正在进行，请稍候。"
    flock 9
  fi
}

build() { # build KIND STAMP
  local start=$SECONDS
  local -a packages=(-r requirements.txt)
  if [ "$1" = dev ]; then packages=(-c constraints.txt -e '.[dev]'); fi
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    find_python
    say "Making .venv with $python ..." "正在用 $python 创建 .venv……"
    "$python" -m venv --clear "$venv"
  fi
  say "Installing the packages into .venv (only this once; takes minutes, downloads up to some GB with CUDA) ..." \
    "正在把所需软件包安装到 .venv（仅此一次；需几分钟，含 CUDA 时需下载数 GB）……"
  # The paths in requirements.txt are relative to the working folder.
  if ! (cd "$root" && "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check "${packages[@]}"); then
    say "Installing failed. Run the command again to continue; for a mirror of the package index, set PIP_INDEX_URL." \
      "安装失败；再次运行即可继续。如需使用软件源镜像，请设置 PIP_INDEX_URL。"
    exit 1
  fi
  printf '%s' "$2" >"$venv/.lorafit-$1"
  say "Packages installed in $((SECONDS - start)) s." "安装完成，用时 $((SECONDS - start)) 秒。"
}

find_python() { # sets $python; runs each candidate, because an existing name may be a shim that fails
  local name
  for name in python3.13 python3.12 python3.11 python3; do
    python="$(command -v "$name" 2>/dev/null)" || continue
    if "$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then return; fi
  done
  cat >&2 <<'TEXT'
Python 3.11 or newer, with its venv module, is needed and was not found.
  macOS          brew install python@3.13    or the installer from https://www.python.org/downloads
  Debian/Ubuntu  sudo apt install python3 python3-venv
  Fedora         sudo dnf install python3
需要 Python 3.11 或更新版本（含 venv 模块），但没有找到。
  macOS          brew install python@3.13    或从 https://www.python.org/downloads 下载安装程序
  Debian/Ubuntu  sudo apt install python3 python3-venv
  Fedora         sudo dnf install python3
TEXT
  exit 1
}

refuse_intel_mac() { # under Rosetta an Apple Silicon Mac also reports x86_64; lorafit itself reports that case
  [ "$(uname -s)" = Darwin ] && [ "$(uname -m)" = x86_64 ] || return 0
  [ "$(sysctl -n sysctl.proc_translated 2>/dev/null || true)" != 1 ] || return 0
  say "PyTorch has had no version for Intel Macs since 2.2, so training cannot run here. Use Colab or Kaggle with the same commands." \
    "PyTorch 自 2.2 起不再支持 Intel Mac，本机无法训练。请在 Colab 或 Kaggle 上使用相同的命令。"
}
