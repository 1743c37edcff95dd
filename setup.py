"Package metadata comes from `settings.ini`, the one place where versions and requirements are written."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read('settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
minor = int(cfg['min_python'].split('.')[1])
assets = [str(p.relative_to('mmneuron_nb')) for p in Path('mmneuron_nb/assets').rglob('*') if p.is_file()]

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    license='Apache-2.0', license_files=['LICENSE'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], keywords=cfg['keywords'],
    long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=['mmneuron_nb', 'mmneuron_nb.*']), package_data={'mmneuron_nb': assets},
    include_package_data=False,
    python_requires=f">={cfg['min_python']}", install_requires=cfg['requirements'].split(),
    extras_require={k: cfg[f'{k}_requirements'].split() for k in ('lab', 'data', 'dev')},
    entry_points={'console_scripts': cfg.get('console_scripts', '').split(), 'nbdev': [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research',
                 *[f'Programming Language :: Python :: 3.{v}' for v in range(minor, 14)]],
    zip_safe=False,
)
