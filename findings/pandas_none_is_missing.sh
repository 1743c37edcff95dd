#!/usr/bin/env bash
# The answer "None" is read as missing.
# With:    pandas 3.1.1, numpy 2.4.6, Python 3.11 or later
# Guess:   a CSV of questions and answers is read as it is written: "None" is an answer to "How many?".
# What is: read_csv takes None, NA, null and nan for missing values, so the answers of a VQA table are NaN. Give
#          keep_default_na=False.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install --quiet pandas==3.1.1 numpy==2.4.6
cd "$tmp"
"$tmp/v/bin/python" - <<'PY'
import io

import pandas as pd

file = 'question,answer\nHow many dogs?,None\nWhich country (code)?,NA\nWho?,null\nHow many cats?,Two\n'
answers = pd.read_csv(io.StringIO(file)).answer
kept = pd.read_csv(io.StringIO(file), keep_default_na=False).answer
print(answers.tolist(), kept.tolist())
assert answers.isna().tolist() == [True, True, True, False]
assert kept.tolist() == ['None', 'NA', 'null', 'Two']
PY
