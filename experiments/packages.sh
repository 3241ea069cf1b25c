# Debian 12 packages of the two commands in README.md; sourced by experiments/quickstart.sh and tests/run.sh.
build_packages=(gcc g++ cmake ninja-build pkg-config git libopenblas-dev libopenmpi-dev openmpi-bin libgsl-dev libcjson-dev
    libcyaml-dev libyaml-dev libcsv-dev zlib1g-dev libzstd-dev libcmocka-dev gnuplot-nox fonts-dejavu-core)
test_packages=(clang-format clang libclang-rt-14-dev)

# Installs those that are missing, if any; needs root or sudo only then.
install_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    echo "installing: ${missing[*]}"
    local root=()
    [ "$(id -u)" -eq 0 ] || root=(sudo)
    "${root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}
