#!/bin/bash
# Installs what the demo and the tests need on Debian 12, 13 or Ubuntu 22.04 and later: by apt, only what is missing.
# Does nothing, quickly, where all is there.
#
#   install.sh [--check]      --check: names what is missing and installs nothing
set -euo pipefail
shopt -s inherit_errexit

readonly qemu_min=8.2 # the first with the igb fixes that the lab needs
readonly rust_min=1.91 go_min=1.21

# A command or a file that shows that the package is there, and the package.
readonly needs=(
  "/bin/busybox busybox-static"
  "bc bc"
  "bison bison"
  "buildah buildah"
  "catatonit catatonit"
  "cpio cpio"
  "dash dash"
  "ethtool ethtool"
  "flex flex"
  "g++ g++"
  "gcc gcc"
  "ip iproute2"
  "kmod kmod"
  "make make"
  "patch patch"
  "ping iputils-ping"
  "pkg-config pkg-config"
  "python3 python3"
  "shellcheck shellcheck"
  "setcap libcap2-bin"
  "socat socat"
  "tcpdump tcpdump"
  "xz xz-utils"
  "zstd zstd"
  "/etc/ssl/certs/ca-certificates.crt ca-certificates"
  "/usr/include/gelf.h libelf-dev"
  "/usr/include/openssl/ssl.h libssl-dev"
  "/usr/share/seabios/bios-256k.bin seabios"
)

say() { echo "setup: $*" >&2; }
die() {
  say "$*"
  exit 1
}

as_root() {
  if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

# at_least VERSION MINIMUM
at_least() { [[ $(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n1) == "$2" ]]; }

# --- what is there ---------------------------------------------------------------------------------------------

# Both of the system's own directories: /usr/sbin is not in every user's path.
has() {
  if [[ $1 == /* ]]; then [[ -e $1 ]]; else PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null; fi
}

has_qemu() {
  local version
  version=$(qemu-system-x86_64 --version 2>/dev/null | sed -n 's/.*version \([0-9.]*\).*/\1/p') || return 1
  at_least "${version:-0}" "$qemu_min"
}

# 6.12 is the kernel that the lab's configuration is made for.
has_linux_source() { [[ -e /usr/src/linux-source-6.12.tar.xz ]]; }

has_rust() {
  local version
  version=$(cargo --version 2>/dev/null | awk '{ print $2 }') || return 1
  at_least "${version:-0}" "$rust_min" && cargo fmt --version &>/dev/null && cargo clippy --version &>/dev/null
}

# The newest Go of apt is kept apart, in a directory by its version; build.sh of the control plane looks there too.
has_go() {
  local go version
  for go in go /usr/lib/go-*/bin/go; do
    version=$("$go" env GOVERSION 2>/dev/null) || continue
    if at_least "${version#go}" "$go_min"; then return 0; fi
  done
  return 1
}

# --- how to get it ---------------------------------------------------------------------------------------------

candidate() { apt-cache policy "$1" | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'; }

# Adds the release's backports beside the archive that apt uses already, whichever mirror that is.
add_backports() {
  local codename uri keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  backports=$codename-backports
  if [[ -n $(archive_of "$backports") ]]; then return; fi
  uri=$(archive_of "$codename")
  [[ -n $uri ]] || die "apt has no source for $codename itself, so there is nowhere to look for $backports"
  say "adding $backports of $uri to apt's sources"
  echo "deb [signed-by=$keyring] $uri $backports main" |
    as_root tee /etc/apt/sources.list.d/hybridnic-backports.list >/dev/null
  as_root apt-get -q update >&2
}

# The URI from which apt gets a release, empty if it does not.
archive_of() {
  apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    awk -v release="$1" '$1 == release && $2 == "main" && !found { print $3; found = 1 }'
}

apt_install() {
  say "installing $*"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "$@" >&2
}

install_qemu() {
  local version packages=(qemu-system-x86)
  version=$(candidate qemu-system-x86)
  version=${version#*:}
  if at_least "${version:-0}" "$qemu_min"; then
    apt_install "${packages[@]}"
    return
  fi
  [[ $distribution == debian ]] ||
    die "QEMU $qemu_min or newer is needed, and this release has ${version:-none}: use a newer release (Ubuntu 24.04, Debian 12)"
  add_backports
  apt_install -t "$backports" "${packages[@]}"
  has_qemu || die "QEMU $qemu_min or newer is needed, and $backports has none"
}

install_linux_source() {
  local package=linux-source-6.12
  if [[ -z $(candidate $package) && $distribution == debian ]]; then add_backports; fi
  [[ -n $(candidate $package) ]] ||
    die "$package is not in this release's archive; the lab's small kernel is built from it (Debian 12 and 13 have it)"
  apt_install "$package"
}

install_go() {
  local package newest=
  if [[ $distribution == debian && $(. /etc/os-release && echo "$VERSION_ID") == 12 ]]; then add_backports; fi
  # golang-1.N-go: several may be there side by side, and golang-go is often an older one.
  newest=$(apt-cache search --names-only '^golang-1\.[0-9]+-go$' | awk '{ print $1 }' | sort -V | tail -n1)
  package=${newest#golang-}
  at_least "${package%-go}" "$go_min" ||
    die "Go $go_min or newer is needed (it then fetches the exact one by itself); this release has ${newest:-none}"
  apt_install "$newest"
}

install_rust() {
  # Debian 13 and Ubuntu 24.04 have rustup. Their own cargo is too old for the project's dependencies.
  if ! has rustup && [[ -n $(candidate rustup) ]]; then apt_install rustup; fi
  has rustup || die "Rust $rust_min or newer is needed, and this release has neither it nor rustup:" \
    "install rustup by its own installer, then run this again"
  rustup toolchain install stable --profile minimal --component rustfmt,clippy
  rustup default stable
  has_rust || die "rustup did not give Rust $rust_min with rustfmt and clippy; see: rustup show"
}

# --- what is missing -------------------------------------------------------------------------------------------

packages=()
for need in "${needs[@]}"; do
  read -r sign package <<<"$need"
  has "$sign" || packages+=("$package")
done
large=()
for part in qemu linux_source go rust; do
  "has_$part" || large+=("$part")
done

if ((${#packages[@]} + ${#large[@]} == 0)); then exit 0; fi
say "missing: ${packages[*]} ${large[*]}"
if [[ ${1:-} == --check ]]; then exit 1; fi

has apt-get || die "this script knows apt only (Debian, Ubuntu); install by hand what is missing"
if ((EUID != 0)) && ! has sudo; then die "run it as root, or install sudo"; fi
distribution=$(. /etc/os-release && echo "$ID")
backports=

as_root apt-get -q update >&2
if ((${#packages[@]})); then apt_install "${packages[@]}"; fi
for part in "${large[@]}"; do "install_$part"; done
say "done"
