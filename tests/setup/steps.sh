# The steps of a test run of ./setup: what came of each is a file in build/results, which tests/lib/tally.py counts.

# What ran is written down as it runs: files of meson and pytest, and the word of a step that has only one outcome.
readonly results=$build/results
# Each worker takes tests from the other once it has none left.
readonly workers=(-n 2 --dist worksteal)

passes() { # NAME COMMAND...: a step that counts as one test
    step "$1"
    local outcome=failed
    if ("${@:2}"); then outcome=passed; fi
    echo "$outcome" >"$results/$1.step"
    [[ $outcome == passed ]]
}

# A step that says with status 77 that it cannot run here, and why.
passes_or_skips() { # NAME COMMAND...
    step "$1"
    local status=0
    ("${@:2}") || status=$?
    case $status in
        0) echo passed ;;
        77) echo skipped ;;
        *) echo failed ;;
    esac >"$results/$1.step"
}

# Steps beside the others: a build, or a test in a machine of its own, while tests run that wait much. They have a lower
# priority. wait_for shows what they printed. `besides` has the process group of each, by name: they end when we do.
declare -A besides=()

beside() { # NAME COMMAND...
    mkdir -p "$build/beside"
    set -m
    {
        renice -n 10 -p "$BASHPID" >/dev/null || true
        "${@:2}"
    } >"$build/beside/$1" 2>&1 </dev/null &
    set +m
    besides[$1]=$!
}

wait_for() { # NAME
    step "Waiting for what runs beside, which writes to ${build#"$PWD/"}/beside/$1"
    wait "${besides[$1]}" || true
    unset "besides[$1]"
    cat "$build/beside/$1"
}

besides_end() {
    local group
    for group in "${besides[@]}"; do
        kill -- "-$group" 2>/dev/null || true
    done
}

passed() { # NAME: whether that step did
    [[ $(cat "$results/$1.step" 2>/dev/null) == passed ]]
}

# The body of a step that installs from PyPI. Where PyPI is out of reach the step is skipped; any other failure is one.
from_pypi() { # COMMAND...
    "$@" && return
    local folder
    folder=$(mktemp -d)
    if "$venv/bin/python" -m pip download -q --disable-pip-version-check --retries 0 --timeout 20 --no-deps -d "$folder" \
        wheel >/dev/null 2>&1; then
        rm -rf "$folder"
        return 1
    fi
    rm -rf "$folder"
    echo "skipped: PyPI, which has the packages, cannot be reached"
    exit 77
}

says_skipped() { # WHY
    echo "skipped: $1"
    exit 77
}
