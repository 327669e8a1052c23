# ./setup test

unit_tests() { # NAME MESON-OPTION...
    step "Unit tests, $1"
    rm -f "$build/$1/meson-logs/testlog.json"
    meson test -C "$build/$1" --print-errorlogs --no-suite gpu "${@:2}" || true
    cp "$build/$1/meson-logs/testlog.json" "$results/$1.meson" || echo failed >"$results/Unit tests, $1.step"
}

run_pytest() { # STEP NAME FOLDER PYTEST-OPTION...
    local status=0
    step "$1"
    ROCMFORGE_BUILD=$build/${2%%-*} ROCMFORGE_MODEL=${model:-} "$venv/bin/python" -m pytest "${@:3}" -q -rs \
        -p no:cacheprovider --junitxml="$results/$2.xml" || status=$?
    # 1: tests failed, and the file says which. Anything else above 0: pytest itself, or a worker of it, did.
    [[ -f $results/$2.xml ]] && ((status <= 1)) || echo failed >"$results/$1.step"
}

integration_tests() { # NAME WHICH: as pytest's -m has it
    run_pytest "Integration tests, $1" "$1" tests/integration -m "not alone${2:+ and $2}" "${workers[@]}"
}

# One at a time, and with nothing beside them.
timing_tests() { # NAME
    run_pytest "Integration tests that measure time, $1" "$1-alone" tests/integration -m alone
}

fake_gpu_tests() { # NAME
    run_pytest "The GPU's tests on a stand-in for its runtime, $1" "$1-gpu" tests/gpu "${workers[@]}"
}

# Files that are not the project's, nor in build/. Root may ask in another's folder. Without git, as in an unpacked
# archive: what Python leaves.
untracked_files() {
    if git -c safe.directory=* rev-parse >/dev/null 2>&1; then
        git -c safe.directory=* ls-files --others | grep -v '^build' || true
    else
        find . -path ./build -prune -o \( -name __pycache__ -o -name '*.pyc' \) -print
    fi
}

nothing_is_left_behind() { # WHAT-THERE-WAS
    diff <(cat <<<"$1") <(cat <<<"$(untracked_files)")
}

# GPU kernels are the same in each build but for their architecture: the oldest and the newest of the three families that
# Debian's compiler knows are built here, and newer ones by rocm_test. Without any, the build takes all that the compiler
# knows.
build_gcc() {
    passes "Build, gcc" compile gcc --werror -Dtests=enabled -Dman=enabled -Dhip=enabled \
        -Dhip-archs=gfx900,gfx90a,gfx1030 || true
}

# In these the code around the kernels is what matters.
build_others() {
    local few=(-Dhip-archs=gfx90a -Dcuda=disabled)
    CC=clang CXX=clang++ passes "Build, clang" compile clang --werror -Dtests=enabled "${few[@]}" || true
    passes "Build, sanitizers" compile asan --werror -Dtests=enabled -Dbuildtype=debugoptimized \
        -Db_sanitize=address,undefined "${few[@]}" || true
}

on_other_systems() {
    passes_or_skips "HIP's current headers" rocm_test "${current_archs[@]}"
    passes_or_skips "Installing on a bare Debian" install_test
    [[ -z ${model:-} ]] || passes_or_skips "The packages on a booted Debian" cmd_system_test
}

# Half a minute each; tests/soak.py says what it does, and takes longer by hand. The second is on a stand-in for a GPU.
soak() { # NAME OPTION...
    ROCMFORGE_BUILD=$build/$1 "$venv/bin/python" tests/soak.py --minutes 0.5 "${@:2}"
}

soaks() {
    ! passed "Build, gcc" || passes_or_skips "Soak, gcc" soak gcc
    ! passed "Build, sanitizers" || passes_or_skips "Soak, sanitizers" soak asan --gpu
}

test_gcc() {
    unit_tests gcc
    if [[ -n ${model:-} ]]; then
        integration_tests gcc
        python_tests gcc "$venv/bin/python"
        debug_python_tests gcc
        other_python_tests gcc 3.9
        other_python_tests gcc 3.13
    fi
    fake_gpu_tests gcc
}

# Decoders for another processor, and what is installed, are the same in each build: test_gcc has tested them.
test_sanitizers() {
    unit_tests asan --no-suite aarch64 --no-suite install
    if [[ -n ${model:-} ]]; then
        integration_tests asan "not sources"
        # How the package is made has nothing that a sanitizer could find, and mypy takes long under one.
        python_tests asan "$venv/bin/python" --ignore tests/python/test_package.py
    fi
    fake_gpu_tests asan
}

cmd_test() {
    need_for_build
    need_for_test
    install_missing
    get_promtool
    rm -rf "$results"
    mkdir -p "$results"
    clock_began=$SECONDS
    local before name
    before=$(untracked_files)
    beside gcc build_gcc
    if passes "Python packages" install_python_packages; then
        make_model
    fi
    wait_for gcc

    beside others build_others
    beside fuzz fuzz_each
    if passed "Build, gcc"; then test_gcc; fi
    wait_for others
    beside systems on_other_systems
    [[ -z ${model:-} ]] || beside soak soaks
    if passed "Build, clang"; then unit_tests clang --no-suite aarch64 --no-suite install; fi
    if passed "Build, sanitizers"; then test_sanitizers; fi
    [[ -z ${model:-} ]] || wait_for soak
    wait_for fuzz
    wait_for systems

    for name in gcc asan; do
        [[ -z ${model:-} || ! -f $results/$name.xml ]] || timing_tests "$name"
    done
    passes "Lint" cmd_lint || true
    passes "Nothing is left behind" nothing_is_left_behind "$before" || true

    step "The slowest"
    "$python" tests/lib/slowest.py "$results"
    step "Results"
    "$python" tests/lib/tally.py "$results"
}
