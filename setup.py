"Hands settings.ini, the one home of the metadata, to setuptools."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages,setup

cfg = ConfigParser(delimiters=['='])
cfg.read_string(Path(__file__).with_name('settings.ini').read_text(encoding='utf-8'))
c = cfg['DEFAULT']
extras = {k.removesuffix('_requirements'): v.split() for k,v in c.items() if k.endswith('_requirements')}
setup(version=c['version'], description=c['description'], install_requires=c['requirements'].split(), extras_require=extras,
      python_requires=f">={c['min_python']}", packages=[*find_packages(include=['malaria_fastai*']), 'malaria_fastai.facts'],
      package_dir={'malaria_fastai.facts': 'data/facts'}, package_data={'malaria_fastai': ['templates/*', 'network/*'], 'malaria_fastai.facts': ['*.csv.gz', '*.csv', '*.md']})
