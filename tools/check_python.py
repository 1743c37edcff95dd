"""Is this Python one that the project runs on? Says what to do if not (kept to syntax that every Python reads)."""
import sys

FIRST, LAST = (3, 10), (3, 13)

def problem(version, has_venv=True):
    "One sentence with the remedy, or '' if all is well."
    if not FIRST <= tuple(version[:2]) <= LAST:
        return ('mmneuron_nb runs on Python %d.%d to %d.%d, this is %d.%d: '
                'name another one with `make PYTHON=python3.12 ...`.'
                % (FIRST + LAST + tuple(version[:2])))
    if not has_venv:
        return ('Python %d.%d has no `venv` here: `apt-get install python3-venv` (with sudo if need be) brings it, '
                'then run make again.' % tuple(version[:2]))
    return ''

def has_venv():
    "Debian and Ubuntu ship `venv` and `ensurepip` apart from Python."
    try: import ensurepip, venv  # noqa: F401
    except ImportError: return False
    return True

if __name__ == '__main__': sys.exit(problem(sys.version_info, has_venv()) or 0)
