#!/usr/bin/env bash
# A picture of 16 bits turns white.
# With:    pillow 13.0.0, numpy 2.4.6, Python 3.11 or later
# Guess:   convert("RGB") of a 16-bit PNG scales 0..65535 to 0..255.
# What is: everything above 255 becomes 255. Image processors call convert("RGB"), so a scan or a depth map reaches the
#          model as a white page.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install --quiet pillow==13.0.0 numpy==2.4.6
cd "$tmp"
"$tmp/v/bin/python" - <<'PY'
import io

import numpy as np
from PIL import Image

Image.fromarray(np.array([[0, 200, 300, 40_000, 65_535]], np.uint16)).save(file := io.BytesIO(), 'PNG')
image = Image.open(file)
red = np.asarray(image.convert('RGB'))[0, :, 0].tolist()
print(image.mode, np.asarray(image)[0].tolist(), '->', red)
assert red == [0, 200, 255, 255, 255]
PY
