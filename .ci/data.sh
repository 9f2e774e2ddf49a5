# To be sourced: SNNKIT_DATA where real data sets lie beside the checkout; tests that need them skip elsewhere.
if [ -z "${SNNKIT_DATA:-}" ] && [ -d ../shared/data ]; then
  SNNKIT_DATA=$(mktemp -d)
  trap 'rm -rf "$SNNKIT_DATA"' EXIT
  ln -s "$(cd ../shared/data && pwd)"/* "$SNNKIT_DATA/"
  .venv/bin/python ../shared/data/unpack_cifar100.py "$SNNKIT_DATA"  # the official files, which lie there packed
  export SNNKIT_DATA
fi
