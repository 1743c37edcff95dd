#!/usr/bin/env bash
# A figure shows the values that a masked array hides.
# With:    plotly 7.1.0, numpy 2.4.6, Python 3.11 or later
# Guess:   masked values are gaps, as in matplotlib.
# What is: the mask is ignored: the hidden values, often a fill value or garbage, are drawn. Fill with NaN before.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install --quiet plotly==7.1.0 numpy==2.4.6
cd "$tmp"
"$tmp/v/bin/python" - <<'PY'
import base64
import json

import numpy as np
import plotly.graph_objects as go

hidden = np.ma.masked_equal(np.array([1., -999., 3.]), -999.)
sent = json.loads(go.Figure(go.Scatter(y=hidden)).to_json())['data'][0]['y']
values = np.frombuffer(base64.b64decode(sent['bdata']), sent['dtype'])
print('masked:', hidden, 'sent to the browser:', values)
assert values.tolist() == [1, -999, 3]
PY
