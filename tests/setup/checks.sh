# ./setup lint, fuzz, tsan-test and analyze

cmd_lint() {
    need_for_lint
    install_missing
    local files=() file
    mapfile -t files < <(find client daemon docs kernels proto tests \( -name '*.[ch]' -o -name '*.cpp' -o -name '*.hip' \) | sort)
    ((${#files[@]})) || die "lint looked at no file"
    if ! clang-format --dry-run --Werror "${files[@]}" 2>/dev/null; then
        for file in "${files[@]}"; do
            clang-format "$file" | diff -u --label "$file" --label "$file, formatted" "$file" - || true
        done
        die "clang-format would change these; run it with -i"
    fi
    local scripts
    mapfile -t scripts < <(find client daemon docs kernels proto tests -name '*.py' | sort)
    pyflakes3 "${scripts[@]}" || die "pyflakes found these"
    local shell
    # The parts of setup are looked at with it: they use each other's variables.
    mapfile -t shell < <(find setup .ci/run tests -path tests/setup -prune -o -type f \( -name '*.sh' -o -name setup -o -name run \) -print | sort)
    shellcheck --external-sources --check-sourced --severity=warning "${shell[@]}" || die "shellcheck found these"
    echo "${#files[@]} files are formatted; pyflakes has nothing to say of ${#scripts[@]} scripts, nor shellcheck of" \
        "${#shell[@]}"
}

# --- fuzz ---

# What is found is left in build/fuzz-found, and what is new in build/fuzz-corpus: the next run begins with it.
fuzz() { # SECONDS NAME...
    local seconds=$1 name seeds found=$build/fuzz-found failed=0
    shift
    if ! clang -fsanitize=fuzzer -xc - -o /dev/null <<<'int LLVMFuzzerTestOneInput() { return 0; }' 2>/dev/null; then
        echo "skipped: there is no clang with libFuzzer"
        exit 77
    fi
    [[ -f $build/fuzz/build.ninja ]] || CC=clang CXX=clang++ meson setup "$build/fuzz" -Dfuzz=enabled -Db_lundef=false \
        -Db_sanitize=address,undefined -Dtests=enabled -Dhip=disabled -Dcuda=disabled -Dggml=disabled -Dpython=disabled \
        -Dman=disabled >/dev/null || return
    ninja -C "$build/fuzz" "${@/#/tests/fuzz_}" >/dev/null || return
    mkdir -p "$found"
    rm -rf "$build/fuzz-seeds"
    "$python" tests/fuzz/make_seeds.py "$build/fuzz-seeds" >/dev/null
    for name in "$@"; do
        seeds=("$build/fuzz-corpus/$name")
        mkdir -p "${seeds[0]}"
        [[ ! -d tests/fuzz/corpus/$name ]] || seeds+=("tests/fuzz/corpus/$name")
        [[ $name != dequant ]] || seeds+=("$build/fuzz-seeds")
        if "$build/fuzz/tests/fuzz_$name" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=25 -verbosity=0 \
            -print_final_stats=1 -artifact_prefix="$found/$name-" "${seeds[@]}" >"$build/fuzz-$name.log" 2>&1; then
            echo "fuzz_$name: $(sed -n 's/stat::number_of_executed_units: *//p' "$build/fuzz-$name.log") inputs, nothing found"
        else
            tail -n 60 "$build/fuzz-$name.log"
            failed=1
        fi
    done
    return $failed
}

fuzzers() {
    local file
    for file in tests/fuzz/fuzz_*.c; do
        basename "$file" .c | sed 's/^fuzz_//'
    done
}

cmd_fuzz() { # [SECONDS [NAME...]]
    local names=("${@:2}")
    ((${#names[@]})) || mapfile -t names < <(fuzzers)
    need_for_build
    need_command clang clang
    install_missing
    fuzz "${1:-30}" "${names[@]}"
}

fuzz_each() {
    local names
    mapfile -t names < <(fuzzers)
    passes_or_skips "Fuzzers, 30 s each" fuzz 30 "${names[@]}"
}

# --- tsan-test ---

# Those in which much happens at the same time.
readonly storms=(test_residency_storm.py test_floods.py test_held_up.py test_device_hangs.py test_lifecycle.py)

cmd_tsan_test() {
    need_for_build
    need_for_test
    install_missing
    install_python_packages
    make_model
    rm -rf "$results"
    mkdir -p "$results"
    compile tsan --werror -Dtests=enabled -Dcuda=disabled -Dggml=disabled -Dman=disabled -Dhip-archs=gfx90a \
        -Dbuildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false
    export TSAN_OPTIONS=exitcode=99:halt_on_error=1:suppressions=$PWD/tests/tsan.supp
    unit_tests tsan --suite unit --no-suite aarch64
    run_pytest "Storms, ThreadSanitizer" tsan "${storms[@]/#/tests/integration/}"
    "$python" tests/lib/tally.py "$results"
}

# --- analyze ---

# Exceptions stand where they are, with the reason, as a comment "cppcheck-suppress"; tests/analyze.supp has those that
# would stand everywhere.
cmd_analyze() {
    need_for_build
    need_command cppcheck cppcheck
    need_command scan-build clang-tools
    install_missing
    step "cppcheck"
    cppcheck --quiet --error-exitcode=1 --inline-suppr --enable=warning,performance,portability --std=c11 \
        --suppressions-list=tests/analyze.supp --include=tests/analyze.h -D_GNU_SOURCE -I . -j 2 \
        client/*.c client/rfctl daemon kernels proto
    step "clang's analyzer"
    local folder=$build/analyze
    rm -rf "$folder"
    scan-build -o "$folder-reports" meson setup "$folder" -Dtests=disabled -Dhip=disabled -Dcuda=disabled -Dggml=disabled \
        -Dpython=disabled -Dman=disabled >/dev/null
    scan-build --status-bugs -o "$folder-reports" ninja -C "$folder"
}
