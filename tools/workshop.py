"""A copy of the tutorials to work in: `python tools/workshop.py` fills workshop/, which git ignores.

What is there already stays as it is, so that nobody's work is overwritten; a tutorial that was removed comes back.
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

def copy(root=ROOT):
    "Copy the tutorials that are missing in workshop/; what is said about it."
    to = root/'workshop'
    to.mkdir(exist_ok=True)
    new = [p for p in sorted((root/'nbs/tutorials').glob('*.ipynb')) if not (to/p.name).exists()]
    for p in new:
        links = p.read_text(encoding='utf-8').replace('](../', '](../nbs/')     # to pages that were not copied
        (to/p.name).write_text(links, encoding='utf-8')
    words = f'{len(new)} tutorials copied to workshop/' if new else 'workshop/ has the tutorials already'
    return f'{words}: change and save them there as you like; the originals stay in nbs/tutorials/.'

if __name__ == '__main__': sys.exit(print(copy()))
