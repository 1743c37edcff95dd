#!/usr/bin/env bash
# NaN and infinity in a message to the browser arrive as text.
# With:    jupyter_client 8.10.0, Python 3.11 or later
# Guess:   a NaN in a synced list of a widget arrives as NaN or null, or is an error.
# What is: the message is packed a second time with the texts "nan" and "inf" in it; the kernel prints a deprecation at
#          most, and a chart in the browser gets words among its numbers.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install --quiet jupyter_client==8.10.0
cd "$tmp"
"$tmp/v/bin/python" - <<'PY'
import json
import warnings

from jupyter_client.session import json_packer

message = dict(method='update', state=dict(counts=[1., float('nan'), float('inf')]))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always')
    sent = json_packer(message)
print(sent.decode())
print('warnings:', [w.category.__name__ for w in said])
assert json.loads(sent)['state']['counts'] == [1, 'nan', 'inf']
PY
