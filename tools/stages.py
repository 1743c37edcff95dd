"""Run make targets one after the other, also after one has failed, and end with `N passed, N failed`.

    python tools/stages.py sync notebooks docs-check pytest

A stage says what it counted in its last line of the form `3 passed, 1 failed` (pytest's own line is one of these).
"""
import os
import re
import subprocess
import sys
import time

def counts(text):
    "How many passed, failed (errors included) and were skipped, by the last line that says so."
    for line in reversed(text.splitlines()):
        if not re.search(r'\b\d+ (passed|failed|errors?)\b', line): continue
        n = {'passed': 0, 'failed': 0, 'error': 0, 'skipped': 0}
        for k, word in re.findall(r'(\d+) (passed|failed|error|skipped)', line): n[word] += int(k)
        return n['passed'], n['failed'] + n['error'], n['skipped']
    return 0, 0, 0

def run(cmd):
    "Run `cmd`, show its output as it comes, and return (exit status, output)."
    out = []
    with subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
                          encoding='utf-8', errors='replace') as p:
        for line in p.stdout:
            print(line, end='', flush=True)
            out.append(line)
    return p.returncode, ''.join(out)

def main(stages, make=('make', '--no-print-directory')):
    "Run the stages and return the exit status."
    rows, start = [], time.time()
    for s in stages:
        print(f'\n== {s}', flush=True)
        t = time.time()
        rc, out = run([*make, s])
        ok, bad, skip = counts(out)
        if rc and not bad: bad = 1                                  # it broke before it could count
        rows.append((s, rc, ok, bad, skip, time.time() - t))
    print(f"\n{'stage':<12}{'result':<8}{'passed':>7}{'failed':>7}{'skipped':>8}{'seconds':>9}")
    for s, rc, ok, bad, skip, sec in rows:
        print(f"{s:<12}{'FAILED' if rc else 'ok':<8}{ok:>7}{bad:>7}{skip:>8}{sec:>9.1f}")
    print(f"{'all':<49}{time.time() - start:>11.1f}")
    print(f'{sum(r[2] for r in rows)} passed, {sum(r[3] for r in rows)} failed', flush=True)
    return int(any(r[1] for r in rows))

if __name__ == '__main__':
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.exit(main(sys.argv[1:]))
